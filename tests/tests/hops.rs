//! Hop discovery in a lab of network namespaces with real kernels and net-snmp on the routers. No way leads out of it.

use anyhow::{Context, Result, ensure};
use quire_tests::cluster::Programs;
use quire_tests::process::{complain, wait};
use quire_tests::routed::{Lab, PATIENCE, Router, printers};
use quire_tests::world::Recordings;
use quire_tests::world::Snmpd;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

const ALL: [Router<'static>; 3] = [Router::Snmpd; 3];
const R3_SILENT: [Router<'static>; 3] = [Router::Snmpd, Router::Snmpd, Router::Silent];

#[test]
fn printers_are_found_as_far_as_hops_and_no_further() {
    fn scenario() -> Result<()> {
        let Some(mut lab) = Lab::start("a")? else { return Ok(()) };
        lab.serve(ALL)?;
        for most in [0, 2, 3] {
            let (found, said, summary) = lab.discover(&["--hops", &most.to_string()])?;
            ensure!(found == printers(most), "--hops {most}: {found:?}\n{said}");
            ensure!(!said.contains("does not tell its tables"), "{said}");
            complain(&format!("--hops {most}: {} packets sent, {summary}", summary["packets_sent"]));
        }
        // An excluded router is not asked, so nothing behind it is known.
        let (found, said, _) = lab.discover(&["--hops", "3", "--exclude", "10.77.101.0/30"])?;
        ensure!(found == printers(1), "{found:?}\n{said}");
        let quire = Programs::find()?.path("quire").display().to_string();
        let output = lab.exec("n", &[quire.as_str(), "discover", "--hops", "2", "--explain"])?;
        let said = output.ok()?;
        ensure!(said.contains("10.77.100.1") && said.contains("nothing was sent"), "{said}");
        Ok(())
    }
    scenario().unwrap();
}

#[test]
fn behind_a_silent_router_the_distance_is_measured() {
    fn scenario() -> Result<()> {
        let Some(mut lab) = Lab::start("b")? else { return Ok(()) };
        // A segment that nobody has: what is sent there goes in circles between r2 and r3, and the search ends.
        lab.ip("r2", "route add 10.77.8.0/24 via 10.77.102.2")?;
        lab.serve(R3_SILENT)?;
        let (found, said, _) = lab.discover(&["--hops", "5"])?;
        ensure!(said.contains("10.77.102.2 does not tell its tables"), "silent: {said}");
        ensure!(found == printers(3), "silent: {found:?}\n{said}");
        ensure!(said.contains("segment 10.77.8.0/24: 3 hops or more"), "circles: {said}");
        // Answers take a shorter way home than the datagrams came, and a reply's time to live would say "0 hops".
        lab.link(("n", "side0", "10.77.103.1/30"), ("r3", "side0", "10.77.103.2/30"))?;
        for filter in ["all", "side0", "up0"] {
            lab.sysctl("n", &format!("net.ipv4.conf.{filter}.rp_filter=0"))?;
        }
        lab.ip("r3", "route replace default via 10.77.103.1")?;
        let (found, said, _) = lab.discover(&["--hops", "5"])?;
        ensure!(found == printers(3), "asymmetric: {found:?}\n{said}");
        lab.ip("r3", "route replace default via 10.77.102.1")?;
        translated(&lab)
    }
    scenario().unwrap();
}

/// A router that puts its own address into answers from behind it: where they come from is not known, so nothing is
/// believed.
fn translated(lab: &Lab) -> Result<()> {
    // The measured addresses answer themselves here, else r3 would say in its own name that they are not there.
    for host in [127, 128] {
        lab.ip("h3", &format!("addr add 10.77.3.{host}/24 dev lan0"))?;
    }
    let rule = "add rule ip lab post oifname down0 ip saddr 10.77.3.0/24 ip saddr set 10.77.101.2";
    for command in
        ["add table ip lab", "add chain ip lab post { type filter hook postrouting priority 0 ; }", rule]
    {
        let words: Vec<&str> = command.split(' ').collect();
        let program = "/usr/sbin/nft";
        if !std::path::Path::new(program).exists() {
            complain("left out: translated answers (nft is not installed)");
            return Ok(());
        }
        if let Err(error) = lab.exec("r2", &[&[program][..], &words].concat())?.ok() {
            complain(&format!("left out: translated answers ({error:#})"));
            return Ok(());
        }
    }
    let (found, said, _) = lab.discover(&["--hops", "5"])?;
    ensure!(found == printers(2), "translated: {found:?}\n{said}");
    ensure!(said.contains("segment 10.77.3.0/24: 3 hops or more"), "translated: {said}");
    Ok(())
}

/// r1 knows r2 by LLDP alone, beside a switch; r2 knows r3 by CDP alone. Neither has a route.
const BY_LLDP: &str = "\
1.0.8802.1.1.2.1.4.1.1.12.0.1.1|4x|2800
1.0.8802.1.1.2.1.4.1.1.12.0.2.2|4x|2000
1.0.8802.1.1.2.1.4.2.1.3.0.1.1.1.4.10.77.101.2|2|2
1.0.8802.1.1.2.1.4.2.1.3.0.2.2.1.4.10.77.1.2|2|2
1.3.6.1.2.1.1.2.0|6|1.3.6.1.4.1.9.1.1
1.3.6.1.2.1.4.1.0|2|1
1.3.6.1.2.1.4.20.1.3.10.77.1.1|64|255.255.255.0
1.3.6.1.2.1.4.20.1.3.10.77.100.1|64|255.255.255.252
1.3.6.1.2.1.4.20.1.3.10.77.101.1|64|255.255.255.252
";
const BY_CDP: &str = "\
1.3.6.1.2.1.1.2.0|6|1.3.6.1.4.1.9.1.1
1.3.6.1.2.1.4.1.0|2|1
1.3.6.1.2.1.4.20.1.3.10.77.2.1|64|255.255.255.0
1.3.6.1.2.1.4.20.1.3.10.77.101.2|64|255.255.255.252
1.3.6.1.2.1.4.20.1.3.10.77.102.1|64|255.255.255.252
1.3.6.1.4.1.9.9.23.1.2.1.1.3.2.1|2|1
1.3.6.1.4.1.9.9.23.1.2.1.1.4.2.1|4x|0a4d6602
1.3.6.1.4.1.9.9.23.1.2.1.1.9.2.1|4x|00000029
";

#[test]
fn routers_that_lldp_and_cdp_name_are_asked() {
    fn scenario() -> Result<()> {
        if Recordings::responder().is_none() {
            complain("left out: routers by LLDP and CDP (snmpsim is not installed)");
            return Ok(());
        }
        let Some(mut lab) = Lab::start("l")? else { return Ok(()) };
        lab.serve([Router::Recorded(BY_LLDP), Router::Recorded(BY_CDP), Router::Snmpd])?;
        let (found, said, _) = lab.discover(&["--hops", "3"])?;
        ensure!(found == printers(3), "{found:?}\n{said}");
        ensure!(!said.contains("10.77.1.2 does not tell"), "a switch was asked: {said}");
        let (found, said, _) = lab.discover(&["--hops", "1"])?;
        ensure!(found == printers(1), "{found:?}\n{said}");
        Ok(())
    }
    scenario().unwrap();
}

/// A printer with little to say, for IPv6.
const PRINTER: &str = "\
1.3.6.1.2.1.1.1.0|4|HP ETHERNET MULTI-ENVIRONMENT,ROM none,JETDIRECT,JD149,EEPROM JSI24090012
1.3.6.1.2.1.1.2.0|6|1.3.6.1.4.1.11.2.3.9.1
1.3.6.1.2.1.1.5.0|4|six
1.3.6.1.2.1.25.3.2.1.2.1|6|1.3.6.1.2.1.25.3.1.5
1.3.6.1.2.1.25.3.2.1.3.1|4|HP LaserJet 600 M602
1.3.6.1.2.1.43.5.1.1.17.1|4|CNSIX00001
1.3.6.1.2.1.43.10.2.1.4.1.1|65|4242
";

#[test]
fn addresses_of_ipv6_are_asked_where_a_router_has_spoken_with_them() {
    fn scenario() -> Result<()> {
        if Recordings::responder().is_none() {
            complain("left out: IPv6 behind a router (snmpsim is not installed)");
            return Ok(());
        }
        let Some(mut lab) = Lab::start("v")? else { return Ok(()) };
        let six = [
            ("n", "up0", "fd00:77:100::2/64"),
            ("r1", "down0", "fd00:77:100::1/64"),
            ("r1", "lan0", "fd00:77:1::1/64"),
            ("h1", "lan0", "fd00:77:1::10/64"),
        ];
        for (namespace, interface, address) in six {
            lab.ip(namespace, &format!("addr add {address} dev {interface} nodad"))?;
        }
        lab.sysctl("r1", "net.ipv6.conf.all.forwarding=1")?;
        lab.ip("n", "-6 route add default via fd00:77:100::1")?;
        lab.ip("h1", "-6 route add default via fd00:77:1::1")?;
        lab.simulate("h1", "fd00:77:1::10", PRINTER)?;
        lab.serve(ALL)?;
        // Asking it by its address makes the router learn it.
        wait("the IPv6 printer to answer", PATIENCE, || lab.answers("fd00:77:1::10"))?;
        let named = lab.discover_rows(&["fd00:77:1::10"])?;
        ensure!(named.len() == 1 && named[0]["serial"] == "CNSIX00001", "{named:?}");
        let (found, said, _) = lab.discover(&["--hops", "1"])?;
        let mut expected = printers(1);
        expected.insert("fd00:77:1::10".to_owned(), 1);
        ensure!(found == expected, "{found:?}\n{said}");
        ensure!(said.contains("fd00:77:1::/64: 1 hops, via 10.77.100.1: not swept: IPv6"), "{said}");
        let (found, _, _) = lab.discover(&["--hops", "1", "--exclude", "fd00:77:1::/64"])?;
        ensure!(found == printers(1), "an excluded address was asked: {found:?}");

        // The same by a cluster: the prefix is one unit, and the known address in it is read.
        lab.node("n", "n1", "10.77.100.2:7440", &["--init", "lab"])?;
        lab.apply("n1", &settings("hops = 1\nsegments = [\"fd00:77:1::10\"]"))?;
        wait("the IPv6 printer in the cluster", PATIENCE, || has_devices(&lab, "n1", &expected))?;
        let units = prefixes(&lab.list("n1", &["units"])?);
        ensure!(units.contains("fd00:77:1::10/128"), "{units:?}");
        // The router itself may be asked; excluded, it would tell nobody whom it has spoken with.
        lab.apply("n1", &settings("hops = 1\nexclude = [\"10.77.0.0/24\", \"10.77.1.0/24\"]"))?;
        wait("the whole prefix as a unit", PATIENCE, || {
            let units = lab.list("n1", &["units"])?;
            let unit = units.iter().find(|unit| unit["segment"] == "fd00:77:1::/64");
            ensure!(
                unit.is_some_and(|unit| unit["state"] == "swept" && unit["responders"] == 1),
                "{units:?}"
            );
            Ok(())
        })
    }
    scenario().unwrap();
}

fn settings(discovery: &str) -> String {
    format!("[discovery]\n{discovery}\nrate = 2000\n\n[metering]\nevery = \"10s\"\n\n[http]\nports = []\n")
}

/// Waits until the cluster's devices are exactly these.
fn has_devices(lab: &Lab, node: &str, expected: &BTreeMap<String, u64>) -> Result<()> {
    let devices = lab.list(node, &["devices"])?;
    let found: BTreeMap<String, u64> = devices
        .iter()
        .filter_map(|device| Some((device["address"].as_str()?.to_owned(), device["hops"].as_u64()?)))
        .collect();
    ensure!(found == *expected, "{found:?} of {}", devices.len());
    Ok(())
}

fn prefixes(rows: &[Value]) -> BTreeSet<String> {
    rows.iter().filter_map(|row| row["segment"].as_str().map(ToOwned::to_owned)).collect()
}

/// State by prefix.
fn states(lab: &Lab, node: &str) -> Result<BTreeMap<String, String>> {
    let rows = lab.list(node, &["segments"])?;
    let state = |row: &Value| Some((row["segment"].as_str()?.to_owned(), row["state"].as_str()?.to_owned()));
    Ok(rows.iter().filter_map(state).collect())
}

#[test]
fn a_cluster_follows_routers_and_its_operator() {
    fn scenario() -> Result<()> {
        let Some(mut lab) = Lab::start("c")? else { return Ok(()) };
        // What nobody wants: a public segment behind r1, containers on r1 and on the node itself.
        for (namespace, interface, address) in [
            ("r1", "wan0", "8.8.8.1/24"),
            ("r1", "docker0", "172.17.0.1/16"),
            ("n", "br-lab", "172.18.0.1/16"),
        ] {
            lab.ip(namespace, &format!("link add {interface} type veth peer name p-{interface}"))?;
            lab.ip(namespace, &format!("addr add {address} dev {interface}"))?;
            lab.ip(namespace, &format!("link set {interface} up"))?;
            lab.ip(namespace, &format!("link set p-{interface} up"))?;
        }
        lab.serve(ALL)?;
        lab.node("n", "n1", "10.77.100.2:7440", &["--init", "lab"])?;
        let said = lab.apply("n1", &settings("hops = 2"))?;
        ensure!(!said.contains("note"), "{said}");
        wait("the printers two routers away", PATIENCE, || has_devices(&lab, "n1", &printers(2)))?;
        let found = states(&lab, "n1")?;
        for (prefix, state) in [
            ("10.77.0.0/24", Some("automatic")),
            ("10.77.2.0/24", Some("automatic")),
            ("8.8.8.0/24", Some("proposed")),
            ("172.17.0.0/16", None),
            ("172.18.0.0/16", None),
            ("10.77.3.0/24", None),
        ] {
            ensure!(found.get(prefix).map(String::as_str) == state, "{prefix}: {found:?}");
        }
        let rows = lab.list("n1", &["segments"])?;
        let far = rows.iter().find(|row| row["segment"] == "10.77.2.0/24").context("no 10.77.2.0/24")?;
        ensure!(far["hops"] == 2 && far["node"] == "n1", "{far}");
        ensure!(far["via"] == serde_json::json!(["10.77.100.1", "10.77.101.2"]), "{far}");
        ensure!(!prefixes(&lab.list("n1", &["units"])?).contains("8.8.8.0/24"), "a public prefix is swept");

        decisions(&lab)?;
        reach_follows(&lab)
    }
    scenario().unwrap();
}

/// Refused is never searched; taken back it is; `ask` asks.
fn decisions(lab: &Lab) -> Result<()> {
    let said = lab.quire("n1", &["segments", "refuse", "10.77.2.0/24"])?.ok()?;
    ensure!(said.contains("refused segment 10.77.2.0/24"), "{said}");
    let searched = |prefix: &'static str, wanted: bool| {
        wait(&format!("{prefix} to be searched: {wanted}"), PATIENCE, || {
            let units = prefixes(&lab.list("n1", &["units"])?);
            ensure!(units.contains(prefix) == wanted, "{units:?}");
            Ok(())
        })
    };
    searched("10.77.2.0/24", false)?;
    ensure!(states(lab, "n1")?["10.77.2.0/24"] == "refused");
    let audit = lab.list("n1", &["audit"])?;
    ensure!(
        audit.iter().any(|row| row["what"].as_str().is_some_and(|w| w.contains("refused segment"))),
        "{audit:?}"
    );
    lab.quire("n1", &["segments", "reset", "10.77.2.0/24"])?.ok()?;
    searched("10.77.2.0/24", true)?;
    ensure!(lab.quire("n1", &["segments", "accept", "10.99.0.0/24"])?.ok().is_err(), "nobody found that");
    lab.apply("n1", &settings("hops = 3\naccept = \"ask\""))?;
    searched("10.77.1.0/24", false)?;
    wait("the last segment to be proposed", PATIENCE, || {
        let found = states(lab, "n1")?;
        ensure!(found.get("10.77.3.0/24").map(String::as_str) == Some("proposed"), "{found:?}");
        ensure!(found.values().all(|state| state == "proposed"), "{found:?}");
        Ok(())
    })?;
    lab.quire("n1", &["segments", "accept", "10.77.3.0/24"])?.ok()?;
    searched("10.77.3.0/24", true)
}

/// Reach rows come with a segment and go with it.
fn reach_follows(lab: &Lab) -> Result<()> {
    let reported = |prefix: &'static str, wanted: bool| {
        wait(&format!("the way to {prefix} to be reported: {wanted}"), PATIENCE, || {
            let ways = prefixes(&lab.list("n1", &["reachability"])?);
            ensure!(ways.contains(prefix) == wanted, "{ways:?}");
            Ok(())
        })
    };
    lab.apply("n1", &settings("segments = [\"10.77.200.0/24\"]"))?;
    reported("10.77.200.0/24", true)?;
    lab.apply("n1", &settings("segments = [\"10.77.201.0/24\"]"))?;
    reported("10.77.201.0/24", true)?;
    reported("10.77.200.0/24", false)
}

#[test]
fn nodes_share_the_routers_and_the_nearest_has_the_unit() {
    fn scenario() -> Result<()> {
        let Some(mut lab) = Lab::start("s")? else { return Ok(()) };
        lab.serve(ALL)?;
        lab.node("n", "n1", "10.77.100.2:7440", &["--init", "lab"])?;
        lab.join("h2", "n2", "10.77.2.2:7440", ("n1", "10.77.100.2:7440"))?;
        lab.apply("n1", &settings("hops = 2"))?;
        wait("all segments with the nearest node", PATIENCE, || {
            let units = lab.list("n1", &["units"])?;
            let owner = |prefix: &str| {
                let unit = units.iter().find(|unit| unit["segment"] == prefix)?;
                Some((unit["node"].as_str()?.to_owned(), unit["hops"].as_u64()?))
            };
            for (prefix, node, hops) in [
                ("10.77.0.0/24", "n1", 0),
                ("10.77.1.0/24", "n1", 1),
                ("10.77.2.0/24", "n2", 0),
                ("10.77.3.0/24", "n2", 2),
            ] {
                ensure!(owner(prefix) == Some((node.to_owned(), hops)), "{prefix}: {units:#?}");
            }
            Ok(())
        })?;
        let all: BTreeSet<String> = printers(3).into_keys().collect();
        wait("every printer", PATIENCE, || {
            let devices = lab.list("n2", &["devices"])?;
            let found: BTreeSet<String> = devices
                .iter()
                .filter_map(|device| device["address"].as_str().map(ToOwned::to_owned))
                .collect();
            ensure!(found == all, "{found:?}");
            Ok(())
        })
    }
    scenario().unwrap();
}

/// Routers lock users as devices do.
#[test]
fn a_wrong_password_is_tried_once_a_pass_at_a_router_and_the_right_one_opens_it() {
    fn scenario() -> Result<()> {
        let Some(mut lab) = Lab::start("v")? else { return Ok(()) };
        lab.serve([Router::Guarded; 3])?;
        lab.node("n", "n1", "10.77.100.2:7440", &["--init", "lab"])?;
        lab.join("h2", "n2", "10.77.2.2:7440", ("n1", "10.77.100.2:7440"))?;
        let user = |auth: &str| {
            format!(
                "[[snmp]]\nversion = \"3\"\nuser = \"{}\"\nauth = \"sha256\"\nauth_pass = \"{auth}\"\npriv = \"aes\"\n\
                 priv_pass = \"{}\"\npermission = \"granted by this test\"\n",
                Snmpd::USER,
                Snmpd::PRIV
            )
        };
        let community = "[[snmp]]\nversion = \"2c\"\ncommunity = \"public\"\n";
        let keys = [user("not the password"), user(Snmpd::AUTH)].concat();
        lab.apply("n1", &format!("{}{community}{keys}", settings("hops = 2")))?;
        let known = printers(2);
        wait("the printers two routers away", PATIENCE, || {
            let devices = lab.list("n2", &["devices"])?;
            let found = devices.iter().filter_map(|device| device["address"].as_str());
            let found: BTreeSet<&str> = found.collect();
            ensure!(known.keys().all(|address| found.contains(address.as_str())), "{found:?}");
            Ok(())
        })?;
        for router in ["10.77.100.1", "10.77.101.2"] {
            wait("the routers to be asked", PATIENCE, || {
                ensure!(lab.wrong_digests(router)? > 0, "nobody was tried at {router}");
                Ok(())
            })?;
            let wrong = lab.wrong_digests(router)?;
            // Once by the exploration, and once by the sweep of its own segment, where that met it first.
            ensure!(wrong <= 2, "{router} met {wrong} wrong passwords in one round");
        }
        Ok(())
    }
    scenario().unwrap();
}
