//! A private network of network namespaces around a [`Switch`], with no way out, gone when dropped.
//!
//! ```text
//! n1 10.79.0.1 ---+
//! n2 10.79.0.2 ---+
//! n3 10.79.0.3 ---+--- switch (a namespace of its own, without an address)
//! admin    ...4 --+
//! devices  ...5 --+    answers for 10.76.0.0/15, too
//! ```
//!
//! API: [`Wires::start`], [`Wires::place`], [`Wires::cut`], [`Wires::weather`], [`Wires::plug`].

use super::switch::{Fate, Switch};
use crate::cluster::{Place, Ports};
use crate::lab::ip;
use crate::process::complain;
use anyhow::{Context, Result};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicU32, Ordering};

/// Name of the namespace that the devices are in.
pub const DEVICES: &str = "devices";
/// Name of the Web Admin's.
pub const ADMIN: &str = "admin";
/// Ports of all programs: each has an address of its own.
pub const PORTS: Ports = Ports::From(7_480);

/// Which way frames do not go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Neither to it nor from it.
    Both,
    /// Nothing arrives there.
    In,
    /// Nothing comes from there.
    Out,
}

/// Namespaces, named after this process.
#[derive(Debug)]
pub struct Wires {
    prefix: String,
    made: Vec<String>,
    ends: Vec<String>,
    switch: Option<Switch>,
}

impl Wires {
    /// One end for each of `nodes`, one for the Web Admin and one for the devices. `None`, with one line, where
    /// namespaces cannot be had.
    ///
    /// # Errors
    /// When a later step fails.
    pub fn start(nodes: &[&str], seed: u64) -> Result<Option<Wires>> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let left_out = |why: &str| {
            complain(&format!("left out: accidents in network namespaces ({why})"));
            Ok(None)
        };
        if !nix::unistd::geteuid().is_root() {
            return left_out("not root");
        }
        let prefix = format!("quire-{}-{}x-", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let ends = nodes.iter().copied().chain([ADMIN, DEVICES]).map(str::to_owned).collect();
        let mut wires = Wires { prefix, made: Vec::new(), ends, switch: None };
        if let Err(error) = wires.make("switch") {
            return left_out(&format!("{error:#}"));
        }
        wires.wire(seed)?;
        Ok(Some(wires))
    }

    fn make(&mut self, name: &str) -> Result<()> {
        let name = format!("{}{name}", self.prefix);
        ip(&format!("netns add {name}"))?;
        self.made.push(name);
        Ok(())
    }

    fn wire(&mut self, seed: u64) -> Result<()> {
        let middle = self.namespace("switch");
        for end in self.ends.clone() {
            self.make(&end)?;
            let (name, host) = (self.namespace(&end), self.host(&end)?);
            let card = self.card(&end)?;
            ip(&format!(
                "link add lan0 address {card} netns {name} type veth peer name {end} netns {middle}"
            ))?;
            // A frame longer than the cable's would not fit through the switch.
            ip(&format!("-n {name} link set lan0 gso_max_segs 1"))?;
            ip(&format!("-n {name} link set lo up"))?;
            ip(&format!("-n {name} addr add {host}/24 dev lan0"))?;
            ip(&format!("-n {name} link set lan0 up"))?;
            ip(&format!("-n {middle} link set {end} up"))?;
            match end.as_str() {
                DEVICES => ip(&format!("-n {name} route add local 10.76.0.0/15 dev lo"))?,
                ADMIN => continue,
                _ => ip(&format!("-n {name} route add 10.76.0.0/15 via {}", self.host(DEVICES)?))?,
            };
            self.know_devices(&name, &end)?;
        }
        self.switch = Some(Switch::start(&middle, &self.ends, seed)?);
        Ok(())
    }

    /// Nodes and devices know each other's cards: a kernel that has to ask for one keeps what it was told to send,
    /// and after a cut sends in one burst what its senders had given up long ago.
    fn know_devices(&self, name: &str, end: &str) -> Result<()> {
        let others = self.ends.iter().filter(|other| (*other == DEVICES) != (end == DEVICES));
        for other in others {
            let (host, card) = (self.host(other)?, self.card(other)?);
            ip(&format!("-n {name} neigh add {host} lladdr {card} dev lan0 nud permanent"))?;
        }
        Ok(())
    }

    /// The hardware address of an end.
    fn card(&self, end: &str) -> Result<String> {
        Ok(format!("02:51:00:00:00:{:02x}", self.port(end)? + 1))
    }

    /// Where a program at an end runs.
    ///
    /// # Errors
    /// When there is no such end.
    pub fn place(&self, end: &str) -> Result<Place> {
        Ok(Place { host: self.host(end)?, namespace: Some(self.namespace(end)), environment: Vec::new() })
    }

    /// The namespace of an end.
    #[must_use]
    pub fn namespace(&self, end: &str) -> String {
        format!("{}{end}", self.prefix)
    }

    /// The number of an end's port.
    ///
    /// # Errors
    /// When there is no such end.
    pub fn port(&self, end: &str) -> Result<usize> {
        self.ends.iter().position(|other| other == end).with_context(|| format!("no end is called {end}"))
    }

    /// The address of an end.
    ///
    /// # Errors
    /// When there is no such end.
    pub fn host(&self, end: &str) -> Result<IpAddr> {
        let last = u8::try_from(self.port(end)? + 1).context("too many ends")?;
        Ok(Ipv4Addr::new(10, 79, 0, last).into())
    }

    /// What joins them.
    ///
    /// # Errors
    /// Never, once started.
    pub fn switch(&self) -> Result<&Switch> {
        self.switch.as_ref().context("there is no switch")
    }

    /// An error once the switch has ended.
    ///
    /// # Errors
    /// Why it has.
    pub fn must_run(&mut self) -> Result<()> {
        self.switch.as_mut().context("there is no switch")?.must_run()
    }

    fn change(&self, from: &str, to: &str, change: impl FnOnce(&mut Fate)) -> Result<()> {
        let (from, to) = (self.port(from)?, self.port(to)?);
        self.switch.as_ref().context("there is no switch")?.set(from, to, change);
        Ok(())
    }

    /// Cuts `end` off from `others`, or takes the cut away.
    ///
    /// # Errors
    /// When there is no such end.
    pub fn cut(&self, end: &str, others: &[String], way: Way, cut: bool) -> Result<()> {
        for other in others.iter().filter(|other| *other != end) {
            if way != Way::Out {
                self.change(other, end, |fate| fate.cut = cut)?;
            }
            if way != Way::In {
                self.change(end, other, |fate| fate.cut = cut)?;
            }
        }
        Ok(())
    }

    /// Loss and delay between all ends from now on; the cuts stay.
    ///
    /// # Errors
    /// When there is no switch.
    pub fn weather(&self, weather: Fate) -> Result<()> {
        for from in &self.ends {
            for to in &self.ends {
                self.change(from, to, |fate| *fate = Fate { cut: fate.cut, ..weather })?;
            }
        }
        Ok(())
    }

    /// Puts an end's cable in, or pulls it out: its interface has no carrier.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn plug(&self, end: &str, plugged: bool) -> Result<()> {
        let state = if plugged { "up" } else { "down" };
        ip(&format!("-n {} link set {end} {state}", self.namespace("switch"))).map(drop)
    }

    /// All ends.
    #[must_use]
    pub fn ends(&self) -> &[String] {
        &self.ends
    }
}

impl Drop for Wires {
    fn drop(&mut self) {
        self.switch = None;
        for name in &self.made {
            if let Err(error) = ip(&format!("netns del {name}")) {
                complain(&format!("{error:#}"));
            }
        }
    }
}
