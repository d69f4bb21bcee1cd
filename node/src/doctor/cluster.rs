//! The cluster as this node sees it: quorum, members, their addresses and clocks, units, segments, the Web Admin.
//!
//! Other members are asked over the cluster's own TLS whether they are there, and nothing else.

use std::collections::BTreeSet;
use std::io;
use std::time::Duration;

use quire_coordinator::rows;
use quire_coordinator::tables::Fault;
use quire_coordinator::timing::{Measured, UNKNOWN_MS, VOTE_MS, Way, beat_ms as beat_of, silent_ms};
use quire_proto::id::ANY_ZONE;
use quire_proto::store::{Heard, Link, Member, Meta, ReachRow, UnitRow};

use super::Finding;
use crate::cluster::{Cluster, Look, Role, SPOOL_LIMIT, Standing};

/// How long one member may take altogether.
const PATIENCE: Duration = Duration::from_secs(5);
/// A clock that is further off than this is wrong: readings from a minute ahead get the leader's time.
const CLOCK_MS: u64 = 10_000;
/// Entries: about a minute of a busy cluster.
const LAG: u64 = 10_000;

/// Every member at its own address, this one included.
pub(super) async fn members(cluster: &Cluster) -> Vec<Finding> {
    let Ok(members) = rows::members(&cluster.view()) else { return Vec::new() };
    let me = cluster.me().id.0;
    let looks = members.iter().map(|member| async move {
        let looked = tokio::time::timeout(PATIENCE, cluster.look(member)).await;
        looked.unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "no answer")))
    });
    let looks = futures::future::join_all(looks).await;
    let mut found: Vec<Finding> = Vec::new();
    for (member, look) in members.iter().zip(looks) {
        found.extend(judge_look(member, look, member.id == me));
    }
    found.extend(versions(&members));
    found
}

/// What came of asking a member at the address that it tells others.
fn judge_look(member: &Member, look: io::Result<Look>, me: bool) -> Vec<Finding> {
    const CHECK: &str = "reach";
    let at = &member.address;
    let look = match look {
        Ok(look) => look,
        // Routers need not lead a host back to itself by its outer address.
        Err(error) if me => {
            let what = format!("this node does not reach itself at {at}: {error}");
            let fix = "nothing, where the others reach it there (run doctor on one of them); else restart it with --advertise";
            return vec![Finding::note(CHECK, what, fix).about(&member.name)];
        }
        Err(error) => {
            let (what, fix) = unreached(at, &error);
            return vec![Finding::problem(CHECK, what, fix).about(&member.name)];
        }
    };
    let what = format!("{at} answers in {} ms", look.took.as_millis());
    let mut found = vec![Finding::ok(CHECK, what).about(&member.name)];
    if !look.version.is_empty() && look.version != member.version {
        let what = format!("it runs {}, and the cluster knows it with {}", look.version, member.version);
        found.push(
            Finding::note("version", what, "nothing: it tells the cluster as soon as there is a quorum")
                .about(&member.name),
        );
    }
    let Some(ahead) = look.ahead_ms.filter(|_| !me) else { return found };
    // The answer took so long that the clock cannot be told more closely.
    let doubt = u64::try_from(look.took.as_millis()).unwrap_or(u64::MAX);
    if ahead.unsigned_abs() > CLOCK_MS.saturating_add(doubt) {
        let word = if ahead > 0 { "ahead of" } else { "behind" };
        let what = format!("its clock is {} s {word} this node's", ahead.unsigned_abs() / 1_000);
        let fix = "let NTP keep both clocks (systemd-timesyncd, chrony)";
        found.push(Finding::problem("clock", what, fix).about(&member.name));
    }
    found
}

fn unreached(at: &str, error: &io::Error) -> (String, String) {
    let what = format!("{at}: {error}");
    let text = error.to_string();
    let fix = match error.kind() {
        io::ErrorKind::ConnectionRefused => {
            "start the node there; if it runs, restart it with the right --advertise"
        }
        io::ErrorKind::TimedOut => {
            "let TCP to this address pass every firewall between the nodes; see that the host is up"
        }
        _ if text.contains("certificate") || text.contains("UnknownIssuer") => {
            "something else answers there: two nodes with one address, or another cluster: restart it with the right --advertise; or one of both was removed, and the cluster's CA changed since: let it join anew with an empty directory"
        }
        _ if text.contains("lookup") || text.contains("resolve") => {
            "give the host a name that every node can resolve"
        }
        _ if text.contains("incarnation") => {
            "its directory was replaced: `quire remove` the old node, and let it join anew"
        }
        _ => "see that the host is up, and that its --advertise leads to it",
    };
    (what, fix.to_owned())
}

fn versions(members: &[Member]) -> Vec<Finding> {
    let known: BTreeSet<&str> = members.iter().map(|member| member.version.as_str()).collect();
    let each = |version: &str| {
        let names = members.iter().filter(|member| member.version == version);
        format!("{version} ({})", names.map(|member| member.name.as_str()).collect::<Vec<_>>().join(", "))
    };
    let listed: Vec<String> = known.iter().map(|version| each(version)).collect();
    match listed.as_slice() {
        [one] => vec![Finding::ok("version", one.clone())],
        several => {
            vec![Finding::note(
                "version",
                several.join("; "),
                "upgrade the others when it suits you, one at a time",
            )]
        }
    }
}

/// What this node's own tables and Raft say.
pub(super) fn standing(cluster: &Cluster) -> Vec<Finding> {
    let standing = cluster.watch().borrow().clone();
    look_at_tables(cluster, &standing).unwrap_or_else(|fault| {
        let fix = "remove this node from the cluster, and join anew with an empty directory";
        vec![Finding::problem("database", fault.to_string(), fix)]
    })
}

fn look_at_tables(cluster: &Cluster, standing: &Standing) -> Result<Vec<Finding>, Fault> {
    let view = cluster.view();
    let (meta, members) = (rows::meta(&view)?, rows::members(&view)?);
    let me = cluster.me().id.0;
    let mut found = vec![Finding::ok("database", "open, held by this node")];
    found.push(quorum(standing, &members));
    found.push(timing(cluster.timing().pace.beat_ms(), cluster.timing().own()));
    if standing.quorum {
        found.extend(alive(&members, &meta.heard, me));
        found.extend(size(standing, &members));
        found.extend(work(&rows::units(&view)?, &rows::reaches(&view)?, &members));
        found.extend(upstream(&meta));
    }
    found.push(spool(cluster.spool().len(), cluster.spool().dropped()));
    Ok(found)
}

fn name_of(members: &[Member], id: u64) -> String {
    let member = members.iter().find(|member| member.id == id);
    member.map_or_else(|| format!("node {id}"), |member| member.name.clone())
}

fn quorum(standing: &Standing, members: &[Member]) -> Finding {
    const CHECK: &str = "quorum";
    if let Some(why) = &standing.failed {
        return Finding::problem(
            CHECK,
            format!("Raft has stopped on this node: {why}"),
            "restart the node; read its log",
        );
    }
    let voters: Vec<String> = standing.voters.iter().map(|id| name_of(members, id.0)).collect();
    match standing.leader.filter(|_| standing.quorum) {
        Some(leader) => {
            let role = if standing.role == Role::Leader { "this node leads" } else { "follows" };
            let what = format!(
                "{} leads in term {} ({role}); {} vote",
                name_of(members, leader.0),
                standing.term,
                voters.join(", ")
            );
            Finding::ok(CHECK, what)
        }
        None => Finding::problem(
            CHECK,
            format!(
                "no leader that a majority of {} follows: nothing is swept, decided or sent",
                voters.join(", ")
            ),
            "bring back nodes until most voters run and reach each other; if they are lost for good: `quire recover --help`",
        ),
    }
}

/// How soon a silent host is replaced, and what holds that up.
fn timing(beat_ms: u64, own: Measured) -> Finding {
    const CHECK: &str = "timing";
    let disk = match own.fsync_us {
        0 => "this disk is not measured yet".to_owned(),
        us => format!("synced writes here take {:.1} ms (99 of 100)", us as f64 / 1e3),
    };
    let silence = silent_ms(beat_ms);
    let what =
        format!("heartbeats every {beat_ms} ms, a silent host is given up within {silence} ms; {disk}");
    let alone = beat_of(own.fsync_us, Way::default());
    if own.fsync_us > 0 && alone > UNKNOWN_MS {
        let fix = format!(
            "put the data directory on a disk that syncs within 160 ms, or what else writes there elsewhere: this one alone \
             makes the cluster wait up to {} ms",
            silent_ms(alone)
        );
        return match alone {
            VOTE_MS => Finding::problem(CHECK, what, fix),
            _ => Finding::note(CHECK, what, fix),
        };
    }
    if beat_ms > UNKNOWN_MS {
        let fix = "see `quire members` for the member whose disk (FSYNC MS) or way (RTT MS) is slow";
        return Finding::note(CHECK, what, fix);
    }
    Finding::ok(CHECK, what)
}

fn alive(members: &[Member], heard: &[Heard], me: u64) -> Vec<Finding> {
    let mut found = Vec::new();
    for member in members.iter().filter(|member| member.id != me) {
        let heard = heard.iter().find(|heard| heard.node == member.id);
        match heard {
            None => found.push(
                Finding::problem(
                    "members",
                    format!("the leader does not hear it (zone {})", member.zone),
                    format!("start it; if it is lost for good: `quire remove {}`", member.name),
                )
                .about(&member.name),
            ),
            Some(heard) if heard.lag > LAG => found.push(
                Finding::problem(
                    "lag",
                    format!("it is {} entries behind the leader", heard.lag),
                    "look at its disk and its way to the leader",
                )
                .about(&member.name),
            ),
            Some(_) => {}
        }
    }
    let draining = members.iter().filter(|member| member.draining);
    found.extend(draining.map(|member| {
        let fix = format!("`quire resume {}` gives it work again", member.name);
        Finding::note("members", "drained: it has no work", fix).about(&member.name)
    }));
    if found.is_empty() {
        found.push(Finding::ok("members", format!("{} of {} are heard", members.len(), members.len())));
    }
    found
}

/// How many nodes may fail.
fn size(standing: &Standing, members: &[Member]) -> Vec<Finding> {
    const CHECK: &str = "size";
    let zones: BTreeSet<&str> = members
        .iter()
        .filter(|member| standing.voters.iter().any(|voter| voter.0 == member.id))
        .map(|member| member.zone.as_str())
        .collect();
    match (standing.voters.len(), members.len()) {
        (1 | 2, all) => {
            let what = format!(
                "{} of {all} vote: with the loss of a voter nothing is decided any more",
                standing.voters.len()
            );
            vec![Finding::note(CHECK, what, "three nodes survive the loss of any one; a `--witness` will do")]
        }
        (voters, _) if zones.len() == 1 => {
            let zone = zones.first().copied().unwrap_or_default();
            let what = format!("all {voters} voters stand in zone {zone}");
            vec![Finding::note(CHECK, what, "voters in three zones survive the loss of any one")]
        }
        (voters, _) => vec![Finding::ok(CHECK, format!("{voters} voters in {} zones", zones.len()))],
    }
}

/// Units without a node, and segments that nobody reaches.
fn work(units: &[UnitRow], reaches: &[ReachRow], members: &[Member]) -> Vec<Finding> {
    const CHECK: &str = "segments";
    let mut found = Vec::new();
    let segments: BTreeSet<(&str, &str)> =
        units.iter().map(|unit| (unit.segment.as_str(), unit.zone.as_str())).collect();
    for (segment, zone) in &segments {
        let known: Vec<_> = reaches
            .iter()
            .filter_map(|row| row.reach.as_ref())
            .filter(|reach| reach.segment == *segment)
            .collect();
        if !known.is_empty() && known.iter().all(|reach| !reach.reachable) {
            let what = format!("no node of zone {zone} reaches it");
            let fix = "give a node a route there, or take it out of [discovery] segments";
            found.push(Finding::problem(CHECK, what, fix).about(*segment));
        }
    }
    let idle: Vec<&UnitRow> = units.iter().filter(|unit| unit.node == 0).collect();
    for zone in idle.iter().map(|unit| unit.zone.as_str()).collect::<BTreeSet<_>>() {
        let count = idle.iter().filter(|unit| unit.zone == zone).count();
        let fix = match members
            .iter()
            .any(|member| (zone == ANY_ZONE || member.zone == zone) && !member.witness)
        {
            true => {
                "see `quire plan --explain ADDRESS`: a node that is alive, not drained and not forbidden must reach them"
            }
            false => "no node stands in this zone: start one with --zone, or correct the settings",
        };
        found.push(Finding::problem("units", format!("{count} units have no node"), fix).about(zone));
    }
    if found.is_empty() {
        found.push(Finding::ok(
            CHECK,
            format!("{} segments, {} units, each with a node", segments.len(), units.len()),
        ));
    }
    found
}

fn upstream(meta: &Meta) -> Vec<Finding> {
    const CHECK: &str = "upstream";
    let Some(enroll) = &meta.upstream else {
        return vec![Finding::ok(CHECK, "not enrolled at a Web Admin")];
    };
    let link = meta.link.clone().unwrap_or_default();
    let pending = meta.outbox_next.saturating_sub(1).saturating_sub(meta.outbox_acked);
    vec![judge_link(&enroll.url, &link, pending, &data_encoding::HEXLOWER.encode(&enroll.pin_sha256))]
}

fn judge_link(url: &str, link: &Link, pending: u64, pin: &str) -> Finding {
    const CHECK: &str = "upstream";
    let because = if link.detail.is_empty() { String::new() } else { format!(": {}", link.detail) };
    let foreign = ["UnknownIssuer", "BadSignature", "invalid peer certificate"];
    match link.state.as_str() {
        "connected" => Finding::ok(CHECK, format!("{url} ({} mode), {pending} readings wait", link.mode)),
        // It was reached, said all it had, and left on purpose.
        _ if link.mode == "normal" && link.detail.is_empty() => {
            Finding::ok(CHECK, format!("{url} checked in with, {pending} readings wait"))
        }
        "refused" => Finding::problem(
            CHECK,
            format!("{url} refuses this cluster{because}"),
            "if the site was revoked there: `quire-admin site add`, then `quire enroll` with the new code",
        ),
        _ if foreign.iter().any(|sign| link.detail.contains(sign)) => Finding::problem(
            CHECK,
            format!(
                "{url} shows a certificate of another CA than the one that was pinned (sha256:{pin}){because}"
            ),
            "somebody else answers there, or the Web Admin was set up anew: compare pins, then enroll again",
        ),
        _ => Finding::problem(
            CHECK,
            format!("{url} is not connected{because}; {pending} readings wait"),
            "let the leader reach it over TCP (every node may lead); readings are kept meanwhile",
        ),
    }
}

fn spool(waiting: u64, dropped: u64) -> Finding {
    const CHECK: &str = "spool";
    let what = format!("{waiting} observations wait to be committed");
    if dropped > 0 {
        let what = format!("{what}, {dropped} were dropped since the start");
        return Finding::problem(CHECK, what, "bring back the quorum: a node keeps only so much by itself");
    }
    if waiting > SPOOL_LIMIT / 2 {
        return Finding::problem(CHECK, what, "bring back the quorum before the spool is full");
    }
    Finding::ok(CHECK, what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::State;
    use quire_proto::id::NodeId;
    use quire_proto::store::Reach;

    fn member(id: u64, zone: &str) -> Member {
        Member {
            id,
            name: format!("n{id}"),
            zone: zone.into(),
            address: "10.0.0.1:7440".into(),
            version: "1".into(),
            ..Member::default()
        }
    }

    fn worst(found: &[Finding]) -> State {
        found.iter().map(|finding| finding.state).min().unwrap()
    }

    #[test]
    fn a_disk_that_holds_up_fail_over_is_named() {
        let disk = |fsync_us| Measured { fsync_us, rtt_us: 0 };
        let state = |beat, fsync| timing(beat, disk(fsync)).state;
        assert_eq!((state(50, 3_000), state(100, 0)), (State::Ok, State::Ok));
        assert_eq!((state(250, 200_000), state(1_000, 2_000_000)), (State::Note, State::Problem));
        assert!(timing(250, disk(200_000)).fix.contains("2000 ms"), "{:?}", timing(250, disk(200_000)));
        assert!(timing(250, disk(3_000)).fix.contains("quire members"), "another's disk");
    }

    #[test]
    fn a_member_that_is_not_reached_gets_the_fix_that_fits() {
        let far = member(2, "hq");
        let look = |kind, text: &str| judge_look(&far, Err(io::Error::new(kind, text.to_owned())), false);
        let fix = |kind, text: &str| {
            let found = look(kind, text);
            assert_eq!((worst(&found), found[0].about.as_str()), (State::Problem, "n2"));
            found[0].fix.clone()
        };
        assert!(fix(io::ErrorKind::ConnectionRefused, "refused").contains("start the node"));
        assert!(fix(io::ErrorKind::TimedOut, "no answer").contains("firewall"));
        assert!(
            fix(io::ErrorKind::Other, "invalid peer certificate: UnknownIssuer").contains("another cluster")
        );
        assert!(fix(io::ErrorKind::Other, "node 2 has another incarnation").contains("quire remove"));
        let me = judge_look(&far, Err(io::ErrorKind::TimedOut.into()), true);
        assert_eq!(worst(&me), State::Note, "routers need not lead back");
    }

    #[test]
    fn clocks_are_compared_no_closer_than_the_answer_allows() {
        let look = |took, ahead_ms| {
            let took = Duration::from_millis(took);
            worst(&judge_look(&member(2, "hq"), Ok(Look { took, ahead_ms, version: "1".into() }), false))
        };
        assert_eq!((look(5, Some(500)), look(5, None)), (State::Ok, State::Ok));
        assert_eq!((look(5, Some(12_000)), look(5, Some(-12_000))), (State::Problem, State::Problem));
        assert_eq!(look(4_000, Some(12_000)), State::Ok);
    }

    #[test]
    fn versions_that_differ_are_named_with_their_nodes() {
        let mut members = [member(1, "a"), member(2, "a"), member(3, "b")];
        assert_eq!(versions(&members)[0].state, State::Ok);
        members[1].version = "2".into();
        assert_eq!(versions(&members)[0].what, "1 (n1, n3); 2 (n2)");
    }

    #[test]
    fn quorum_members_and_size_are_judged() {
        let members = [member(1, "a"), member(2, "a"), member(3, "a")];
        let voters: BTreeSet<NodeId> = [1, 2, 3].map(NodeId).into();
        let good = Standing { leader: Some(NodeId(2)), quorum: true, voters, ..Standing::default() };
        assert!(quorum(&good, &members).what.starts_with("n2 leads"));
        let lost = Standing { quorum: false, ..good.clone() };
        assert!(quorum(&lost, &members).fix.contains("recover"));
        let stopped = Standing { failed: Some("disk".into()), ..good.clone() };
        assert_eq!(quorum(&stopped, &members).state, State::Problem);
        assert_eq!(size(&good, &members)[0].state, State::Note, "one zone");
        assert_eq!(size(&good, &[member(1, "a"), member(2, "b"), member(3, "c")])[0].state, State::Ok);
        let heard = |node, lag| Heard { node, lag, ..Heard::default() };
        assert_eq!(worst(&alive(&members, &[heard(2, 0), heard(3, 9)], 1)), State::Ok);
        assert_eq!(alive(&members, &[heard(2, 0)], 1)[0].about, "n3");
        assert_eq!(alive(&members, &[heard(2, 0), heard(3, LAG + 1)], 1)[0].check, "lag");
    }

    #[test]
    fn work_that_nobody_can_do_is_named() {
        let unit = |segment: &str, zone: &str, node| UnitRow {
            segment: segment.into(),
            zone: zone.into(),
            node,
            ..UnitRow::default()
        };
        let reach = |node, segment: &str, reachable| ReachRow {
            node,
            reach: Some(Reach { segment: segment.into(), reachable, ..Reach::default() }),
        };
        let members = [member(1, "a")];
        let good = work(&[unit("10.1.0.0/24", "a", 1)], &[reach(1, "10.1.0.0/24", true)], &members);
        assert_eq!(worst(&good), State::Ok);
        let bad = work(
            &[unit("10.1.0.0/24", "a", 1), unit("10.2.0.0/24", "b", 0)],
            &[reach(1, "10.1.0.0/24", false), reach(2, "10.1.0.0/24", false)],
            &members,
        );
        assert_eq!(bad[0].about, "10.1.0.0/24");
        assert!(bad[1].about == "b" && bad[1].fix.contains("no node stands in this zone"), "{bad:?}");
    }

    #[test]
    fn the_link_says_what_is_wrong_with_it() {
        let judge = |state: &str, mode: &str, detail: &str| {
            let link = Link { state: state.into(), mode: mode.into(), detail: detail.into() };
            judge_link("https://admin:443", &link, 3, "abcd")
        };
        assert_eq!(judge("connected", "service", "").state, State::Ok);
        assert_eq!(judge("connecting", "normal", "").state, State::Ok, "between two check-ins");
        assert!(judge("refused", "service", "revoked: …").fix.contains("site add"));
        let foreign = judge(
            "connecting",
            "service",
            "reach https://admin:443: invalid peer certificate: UnknownIssuer",
        );
        assert!(foreign.what.contains("sha256:abcd") && foreign.state == State::Problem, "{foreign:?}");
        assert!(judge("connecting", "service", "does not answer").what.contains("3 readings wait"));
        assert_eq!((spool(0, 0).state, spool(0, 1).state), (State::Ok, State::Problem));
        assert_eq!(spool(SPOOL_LIMIT - 1, 0).state, State::Problem);
    }
}
