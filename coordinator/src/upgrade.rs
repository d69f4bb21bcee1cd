//! The cluster version: what all members know how to apply, committed, so that nodes can be upgraded one by one.
//!
//! A program knows versions up to its own (`quire_proto::CLUSTER_VERSION`). The cluster's rises when every member knows
//! a later one, and never falls; what came with a version is used only from then on. So no entry of the log is read by
//! a node that does not understand it, and a program that is too old for the cluster is refused at the door.

use quire_proto::store::outcome::Result as Answer;
use quire_proto::store::{Member, Meta, Upgrade};

use crate::rows;
use crate::state::{audit, refuse};
use crate::tables::{Fault, Overlay};

/// Planned moves of units in two phases (`Grant.hand_over`, `Command::Release`).
pub const HAND_OVER: u32 = 1;
/// Measured costs of units (`Command::ReportCosts`).
pub const MEASURED_COST: u32 = 2;
/// Users tried at routers are agreed upon before (`Command::RouterTrial`).
pub const ROUTER_TRIAL: u32 = 2;
/// Claim renewals say how long each member's disk and way take (`Heard.fsync_us`, `rtt_us`).
pub const TIMING: u32 = 2;
/// Certificates in the members' rows, and changes of the cluster key and of the CA (`crate::rotation`).
pub const ROTATION: u32 = 2;
/// Faces that differ by their engines alone count once, and so many of them are kept.
pub const ENGINES: u32 = 3;
/// Meters come back to a source that tells again, and a jump counts when a second reading confirms it.
pub const METERS: u32 = 3;
/// A supply that falls far from reading to reading is followed.
pub const SUPPLY_FALLS: u32 = 3;
/// Devices in units that are in no plan, as printers on a node's own cables, grow old by the cluster's time.
pub const UNPLANNED_AGE: u32 = 3;
/// Times that lie in the leader's future bar nobody from an address.
pub const BOUND_HOMES: u32 = 3;
/// Among the targets of an alert those make room that were told longest ago, or that the rule does not name any more.
pub const OLD_TARGETS: u32 = 3;
/// What is asked for is asked for at the leader's time, which bounds the rounds of routers' trials, too.
pub const LED_ASKS: u32 = 3;
/// A Web Admin that is new is told of what operators typed.
pub const TYPED_TOLD: u32 = 3;

/// The version that the cluster may go to, when that is a later one than it has.
pub fn due(meta: &Meta, members: &[Member]) -> Option<u32> {
    let known = members.iter().map(|member| member.cluster_version).min()?;
    (known > meta.cluster_version).then_some(known)
}

/// Why a program cannot take part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "this program knows cluster versions up to {knows}, and the cluster is at {cluster}: install a later release here"
)]
pub struct TooOld {
    /// What the program knows.
    pub knows: u32,
    /// What the cluster is at.
    pub cluster: u32,
}

/// Whether a program that knows versions up to `knows` understands the cluster.
///
/// # Errors
/// When it does not.
pub fn check(meta: &Meta, knows: u32) -> Result<(), TooOld> {
    if knows >= meta.cluster_version { Ok(()) } else { Err(TooOld { knows, cluster: meta.cluster_version }) }
}

/// Raises the version, if every member still knows it.
pub(crate) fn apply(
    tables: &mut Overlay<'_>,
    index: u64,
    at_ms: u64,
    upgrade: &Upgrade,
) -> Result<Answer, Fault> {
    let mut meta = rows::meta(tables)?;
    let members = rows::members(tables)?;
    if let Some(member) = members.iter().find(|member| member.cluster_version < upgrade.version) {
        return Ok(refuse(format!(
            "node `{}` does not know cluster version {}",
            member.name, upgrade.version
        )));
    }
    if upgrade.version > meta.cluster_version {
        let what = format!("cluster version {} (was {})", upgrade.version, meta.cluster_version);
        meta.cluster_version = upgrade.version;
        rows::put_meta(tables, &meta);
        audit(tables, index, at_ms, "cluster", what);
    }
    Ok(Answer::Done(true))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str, cluster_version: u32) -> Member {
        Member { name: name.into(), cluster_version, ..Member::default() }
    }

    #[test]
    fn the_oldest_member_decides() {
        let meta = Meta { cluster_version: 3, ..Meta::default() };
        assert_eq!(due(&meta, &[member("a", 5), member("b", 4)]), Some(4));
        assert_eq!(due(&meta, &[member("a", 5), member("b", 3)]), None);
        assert_eq!(
            due(&meta, &[member("a", 5), member("b", 0)]),
            None,
            "an older program says nothing of it"
        );
        assert_eq!(due(&meta, &[]), None);
    }

    #[test]
    fn a_program_that_is_too_old_is_told_what_to_do() {
        let meta = Meta { cluster_version: 3, ..Meta::default() };
        assert!(check(&meta, 3).is_ok() && check(&meta, 4).is_ok());
        assert!(check(&meta, 2).unwrap_err().to_string().contains("install a later release"));
    }
}
