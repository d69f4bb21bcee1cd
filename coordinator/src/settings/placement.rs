//! `[[placement]]`: which node an operator wants, or does not want, to work on a part of the network.

use ipnet::IpNet;
use quire_proto::id::ANY_ZONE;

use super::form::Field;
use super::{prefix, zone};

/// One `[[placement]]`. It holds for the units that lie in its segment as a whole; of several the first counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Where.
    pub segment: IpNet,
    /// In which zone; [`ANY_ZONE`]: in all.
    pub zone: String,
    /// The node that shall have the units whenever it can.
    pub pin: Option<String>,
    /// Nodes that shall not have them, even if nobody else can.
    pub forbid: Vec<String>,
}

impl Placement {
    /// Who is wanted and who is not, for listings.
    pub(super) fn label(&self) -> String {
        let zone = if self.zone == ANY_ZONE { String::new() } else { format!(" in zone {}", self.zone) };
        let pin = self.pin.iter().map(|node| format!("pin {node}"));
        let forbid = self.forbid.iter().map(|node| format!("forbid {node}"));
        let rules: Vec<String> = pin.chain(forbid).collect();
        format!("{}{zone}: {}", self.segment, rules.join(", "))
    }
}

/// All of the list; what is wrong is noted.
pub(super) fn placements(entries: &Field<'_>) -> Vec<Placement> {
    let items = entries.list("a list of tables: write [[placement]] with two brackets");
    items.iter().filter_map(placement).collect()
}

fn placement(item: &Field<'_>) -> Option<Placement> {
    let mut form = item.form()?;
    let example = "\"10.1.0.0/16\"";
    let segment = form
        .need("segment", "write segment = \"10.1.0.0/16\"")
        .and_then(|field| field.parsed(example, prefix));
    let zone = form.take("zone").map(|field| field.parsed("\"hq\"", zone));
    let pin = form.take("pin").map(|field| field.parsed("\"n1\"", node));
    let forbid = form.take("forbid").map(|field| {
        let names = field.list("a list such as [\"n1\"]");
        names.iter().filter_map(|name| name.parsed("\"n1\"", node)).collect::<Vec<String>>()
    });
    form.finish(&["segment", "zone", "pin", "forbid"]);
    let (pin, forbid) = (pin.unwrap_or(Some(String::new()))?, forbid.unwrap_or_default());
    let pin = Some(pin).filter(|name| !name.is_empty());
    if pin.is_none() && forbid.is_empty() {
        item.bad("says nothing: write pin = \"n1\", forbid = [\"n2\"], or both");
        return None;
    }
    if pin.as_ref().is_some_and(|name| forbid.contains(name)) {
        item.bad("pins and forbids the same node: remove one of them");
        return None;
    }
    Some(Placement {
        segment: segment?,
        zone: zone.unwrap_or_else(|| Some(ANY_ZONE.to_owned()))?,
        pin,
        forbid,
    })
}

/// A node's name; whether there is such a node shows in `plan --explain`, for it may join later.
fn node(text: &str) -> Result<String, String> {
    match text.trim() {
        "" => Err("is empty: write a node's name".to_owned()),
        name if name.len() > 64 => Err("is longer than any node's name".to_owned()),
        name => Ok(name.to_owned()),
    }
}
