//! Each check holds of a quiet history and not of a doctored one.

use super::*;
use crate::accidents::history::{Event, Link, Stored};
use crate::accidents::switch::Asked;
use std::net::Ipv4Addr;

fn event(at: u64, node: &str, what: What) -> Event {
    Event { at: Duration::from_millis(at), node: node.to_owned(), what }
}

fn status(applied: u64, claim: u64, holder: &str) -> What {
    What::Status { applied, claim, holder: holder.to_owned() }
}

fn unit(owner: &str, epoch: u64) -> What {
    What::Unit { unit: "u".to_owned(), owner: owner.to_owned(), epoch }
}

fn reading(id: &str) -> What {
    What::Reading { id: id.to_owned() }
}

fn stored(id: &str, seq: u64) -> Stored {
    Stored { id: id.to_owned(), seq, device: "d".to_owned(), at: Duration::from_secs(seq) }
}

fn asked(at: u64, port: usize) -> Asked {
    Asked { at: Duration::from_millis(at), port, to: Ipv4Addr::new(10, 76, 0, 17) }
}

fn quiet() -> History {
    History {
        events: vec![
            event(1, "n1", status(5, 3, "n1")),
            event(2, "n2", status(4, 3, "n1")),
            event(3, "n1", unit("n1", 4)),
            event(4, "n2", unit("n1", 4)),
            event(5, "n1", unit("n2", 7)),
            event(6, "n1", reading("a")),
            event(7, "n2", reading("b")),
        ],
        upstream: vec![stored("a", 1), stored("b", 3)],
        links: vec![Link { node: 1, epoch: 3 }, Link { node: 1, epoch: 3 }, Link { node: 2, epoch: 8 }],
        asked: (0..10).map(|n| asked(n * 100, 0)).collect(),
        answered: (0..10).map(|n| asked(n * 100 + 20, 0)).collect(),
        excluded: Some((Duration::ZERO, vec![Ipv4Addr::new(10, 76, 0, 18)])),
        rate: 10,
        ..History::default()
    }
}

type Change = fn(&mut History);

#[test]
fn a_quiet_history_passes_and_each_doctored_one_fails() {
    all(&quiet()).unwrap();
    let doctored: [(&str, Change); 14] = [
        ("claim 3", |history| history.events.push(event(9, "n3", status(4, 3, "n2")))),
        ("under epoch 7", |history| history.events.push(event(9, "n3", unit("n3", 7)))),
        ("goes back", |history| history.events.push(event(9, "n1", status(4, 3, "n1")))),
        ("goes back", |history| history.events.push(event(9, "n1", unit("n1", 4)))),
        ("accepts", |history| history.links.push(Link { node: 1, epoch: 3 })),
        ("accepts", |history| history.links.push(Link { node: 1, epoch: 8 })),
        ("upstream twice", |history| history.upstream.push(stored("a", 4))),
        ("arrived after", |history| history.upstream.reverse()),
        ("is not upstream", |history| history.events.push(event(9, "n1", reading("c")))),
        ("ever showed", |history| history.upstream.push(stored("c", 9))),
        ("which is excluded", |history| {
            history.asked.push(Asked { to: Ipv4Addr::new(10, 76, 0, 18), ..asked(2_000, 0) });
        }),
        ("is all", |history| history.asked.extend((0..10).map(|n| asked(n * 100, 0)))),
        ("SET", |history| history.devices.sets = 1),
        ("neither questions", |history| history.devices.foreign = 1),
    ];
    for (said, change) in doctored {
        let mut history = quiet();
        change(&mut history);
        let error = all(&history).unwrap_err().to_string();
        assert!(error.contains(said), "{said}: {error}");
    }
}

#[test]
fn a_question_may_follow_its_answer_or_a_timeout() {
    let mut history = History { asked: vec![asked(0, 0), asked(10, 1), asked(100, 0)], ..History::default() };
    history.answered = vec![asked(50, 0)];
    assert_eq!(one_question_at_a_time(&history).unwrap(), 1);
    history.answered.clear();
    assert!(one_question_at_a_time(&history).unwrap_err().to_string().contains("without answer"));
    history.asked[2].at = Duration::from_millis(250);
    one_question_at_a_time(&history).unwrap();
}

#[test]
fn together_the_nodes_may_ask_faster_only_while_something_is_broken() {
    let mut history = quiet();
    history.asked.extend((0..10).map(|n| asked(n * 100 + 50, 1)));
    // Two nodes are 8 packets ahead at the most.
    history.asked.push(asked(500, 1));
    assert!(the_rate_is_kept(&history).unwrap_err().to_string().contains("nothing broken"));
    let happened = |lasts| What::Happened { what: "cut".to_owned(), lasts };
    history.events.insert(0, event(0, "n1", happened(true)));
    history.events.push(event(2_000, "n1", happened(false)));
    the_rate_is_kept(&history).unwrap();
    history.asked.push(asked(60_000, 1));
    the_rate_is_kept(&history).unwrap();
    assert_eq!(calm(&history), [(Duration::from_secs(7), Duration::MAX)]);
}

fn left(applied: u64, log: &[(u64, &'static [u8])]) -> Left {
    let log = log.iter().map(|(index, command)| (*index, Some(bytes::Bytes::from_static(command)))).collect();
    Left { applied, tables: MemoryTables::default(), log }
}

#[test]
fn tables_are_compared_where_the_log_reaches() {
    let claim = Command {
        at_ms: 7,
        kind: Some(quire_proto::store::command::Kind::Claim(quire_proto::store::Claim {
            node: 1,
            ..quire_proto::store::Claim::default()
        })),
        ..Command::default()
    };
    let behind = left(1, &[(1, b"\xFF")]);
    let mut ahead = left(1, &[(1, b"\xFF"), (2, b"")]);
    ahead.log.insert(2, Some(claim.encode_to_vec().into()));
    let mut overlay = Overlay::new(&behind.tables);
    state::apply(&mut overlay, 2, &claim).unwrap();
    let writes: Vec<_> = overlay.into_writes().collect();
    assert!(!writes.is_empty());
    ahead.tables.commit(writes.into_iter());
    ahead.applied = 2;
    let both = |a: &Left, b: &Left| {
        identical_tables_at_identical_index(&[("n1".to_owned(), a.clone()), ("n2".to_owned(), b.clone())])
    };
    assert_eq!(both(&behind, &ahead).unwrap(), 2, "what one lacks is applied to it");
    let mut other = ahead.clone();
    other.tables = MemoryTables::default();
    assert!(both(&behind, &other).unwrap_err().to_string().contains("other tables"));
    let mut rewritten = behind.clone();
    rewritten.log.insert(1, None);
    assert!(both(&rewritten, &ahead).unwrap_err().to_string().contains("another entry at 1"));
    let gone = Left { log: BTreeMap::new(), ..ahead };
    assert_eq!(both(&behind, &gone).unwrap(), 1, "what the log has no more is not compared");
}
