//! The quick way of a repeated read, that decodes only what it needs, against the general one: whatever a device answers, both
//! ask the same, find the same and learn the same.

use proptest::prelude::*;
use quire_proto::oid::Oid;
use quire_proto::reading::Via;

use super::responder::Responder;
use super::{Finished, Miss, Read, ReadPlan};
use crate::snmp::{Expected, Prepared, Question, Response, Value};

const WHO: &str = "\
1.3.6.1.2.1.1.1.0|4|Test Printer
1.3.6.1.2.1.1.2.0|6|1.3.6.1.4.1.99999.1
1.3.6.1.2.1.1.5.0|4|PR1
1.3.6.1.2.1.25.3.2.1.2.1|6|1.3.6.1.2.1.25.3.1.5
1.3.6.1.2.1.25.3.2.1.3.1|4|Test 100
";

/// What may differ between two reads of a device.
#[derive(Clone, Debug)]
struct State {
    total: u32,
    levels: Vec<i64>,
    status: u8,
    device: u8,
    errors: u8,
    serial: Option<u8>,
    display: u8,
    alerts: Vec<u32>,
}

fn state(supplies: usize) -> impl Strategy<Value = State> {
    let levels = prop::collection::vec(prop_oneof![8 => 0i64..101, 1 => -4i64..0], supplies);
    let serial = prop_oneof![9 => Just(Some(1u8)), 1 => Just(Some(2)), 1 => Just(None)];
    let alerts = prop::sample::subsequence(vec![1u32, 2, 9], 0..=3);
    let plain = (0u32..9_000, 3u8..6, 2u8..6, prop_oneof![3 => Just(0u8), 1 => any::<u8>()], 0u8..3);
    (plain, levels, serial, alerts).prop_map(
        |((total, status, device, errors, display), levels, serial, alerts)| State {
            total,
            levels,
            status,
            device,
            errors,
            serial,
            display,
            alerts,
        },
    )
}

impl State {
    /// The device's objects as an `.snmprec` file has them.
    fn text(&self) -> String {
        let State { total, status, device, errors, display, .. } = self;
        let mut lines: Vec<String> = WHO.lines().map(str::to_owned).collect();
        lines.push(format!("1.3.6.1.2.1.25.3.2.1.5.1|2|{device}"));
        lines.push(format!("1.3.6.1.2.1.25.3.5.1.1.1|2|{status}"));
        lines.push(format!("1.3.6.1.2.1.25.3.5.1.2.1|4x|{errors:02x}"));
        lines.extend(self.serial.map(|n| format!("1.3.6.1.2.1.43.5.1.1.17.1|4|SERIAL{n}")));
        lines.push(format!("1.3.6.1.2.1.43.10.2.1.4.1.1|65|{total}"));
        lines.push(format!("1.3.6.1.2.1.43.16.5.1.2.1.1|4|Line {display}"));
        for (row, level) in (1..).zip(&self.levels) {
            let cells = [(5, "2|3".to_owned()), (6, format!("4|Part {row}")), (7, "2|19".to_owned())];
            let cells = cells.into_iter().chain([(8, "2|100".to_owned()), (9, format!("2|{level}"))]);
            lines
                .extend(cells.map(|(column, cell)| format!("1.3.6.1.2.1.43.11.1.1.{column}.1.{row}|{cell}")));
        }
        for (column, row) in
            [2, 4, 5, 7].into_iter().flat_map(|column| self.alerts.iter().map(move |row| (column, row)))
        {
            let value = [4, 0, 6, 1, 0, 3][column - 2];
            lines.push(format!("1.3.6.1.2.1.43.18.1.1.{column}.1.{row}|2|{value}"));
        }
        lines.sort_by_key(|line| line.split('|').next().unwrap().parse::<Oid>().unwrap());
        lines.join("\n") + "\n"
    }
}

/// What a device that is broken makes of an answer.
#[derive(Clone, Debug)]
enum Broken {
    No,
    Lost,
    Short(usize),
    Swapped(usize),
    Other(usize, Value),
    Failed(u32),
    Longer,
}

fn broken() -> impl Strategy<Value = Broken> {
    let value = prop_oneof![
        Just(Value::NoSuchInstance),
        Just(Value::Null),
        Just(Value::EndOfMibView),
        any::<u32>().prop_map(Value::Counter32),
        any::<u64>().prop_map(Value::Counter64),
        any::<i64>().prop_map(Value::Integer),
        Just(Value::ObjectId(Oid::new(&[1, 3, 6, 1]))),
        "[0-9a-z]{0,4}".prop_map(|text| Value::OctetString(text.into_bytes().into())),
        Just(Value::Opaque(vec![7].into())),
        any::<u32>().prop_map(Value::TimeTicks),
        any::<u32>().prop_map(|n| Value::IpAddress(n.into())),
    ];
    prop_oneof![
        12 => Just(Broken::No),
        1 => Just(Broken::Lost),
        1 => (0usize..12).prop_map(Broken::Short),
        1 => (0usize..12).prop_map(Broken::Swapped),
        4 => (0usize..12, value).prop_map(|(at, value)| Broken::Other(at, value)),
        1 => (1u32..6).prop_map(Broken::Failed),
        1 => Just(Broken::Longer),
    ]
}

impl Broken {
    fn make(&self, mut response: Response) -> Result<Response, Miss> {
        let count = response.varbinds.len().max(1);
        match self {
            Broken::No => {}
            Broken::Lost => return Err(Miss::Silent),
            Broken::Short(by) => response.varbinds.truncate(count.saturating_sub(*by)),
            Broken::Swapped(at) if count > 1 => response.varbinds.swap(at % count, (at + 1) % count),
            Broken::Other(at, value) if !response.varbinds.is_empty() => {
                response.varbinds[at % count].value = value.clone();
            }
            Broken::Swapped(_) | Broken::Other(..) => {}
            Broken::Failed(status) => response = Response { error_status: *status, ..Response::default() },
            Broken::Longer => response.varbinds.extend(response.varbinds.first().cloned()),
        }
        Ok(response)
    }
}

/// Reads by both ways in step; gives what they found, and how many answers the quick one left undecoded.
fn read_both(
    responder: &Responder,
    plans: [Option<ReadPlan>; 2],
    broken: &[Broken],
) -> ([Finished; 2], usize) {
    let [slow, quick] = plans;
    let (mut slow, mut quick) = (Read::new(Via::SnmpV2c, slow), Read::new(Via::SnmpV2c, quick));
    let (mut undecoded, mut asked) = (0, 0);
    while let Some(request) = slow.poll_request() {
        let question = quick.poll_question().expect("the general way asks more");
        let answer = broken.get(asked).unwrap_or(&Broken::No).make(responder.answer(&request));
        asked += 1;
        let prepared = match &question {
            Question::Plain(plain) => {
                assert_eq!(*plain, request);
                None
            }
            Question::Prepared(prepared) => {
                assert!(prepared.asks(&request), "{request:?}");
                Some(prepared)
            }
        };
        let whole = |prepared: &std::sync::Arc<Prepared>| Expected::to(prepared, answer.as_ref().ok()?);
        match prepared.and_then(whole) {
            Some(expected) => {
                undecoded += 1;
                quick.handle_expected(expected);
            }
            None => quick.handle(answer.clone()),
        }
        slow.handle(answer);
    }
    assert!(quick.poll_question().is_none(), "the quick way asks more");
    ([slow.finish(), quick.finish()], undecoded)
}

proptest! {
    #[test]
    fn both_ways_ask_find_and_learn_the_same(
        states in (0usize..7).prop_flat_map(|supplies| prop::collection::vec(state(supplies), 1..9)),
        steady in any::<bool>(),
        beside in any::<bool>(),
        faults in prop::collection::vec(prop::collection::vec(broken(), 0..3), 9),
    ) {
        let mut plans = [None, None];
        for (round, (changed, broken)) in states.iter().zip(&faults).enumerate() {
            let state = if steady { State { total: changed.total, ..states[0].clone() } } else { changed.clone() };
            let responder = Responder::of(&state.text());
            let broken: &[Broken] = if round == 0 { &[] } else { broken };
            let ([slow, quick], _) = read_both(&responder, plans, broken);
            prop_assert_eq!(&slow.reading, &quick.reading);
            prop_assert_eq!(slow.complete, quick.complete);
            prop_assert_eq!(slow.fresh.answers(), quick.fresh.answers());
            plans = [slow.plan, quick.plan].map(|mut plan| {
                // As if a profile had asked for it.
                let name: Oid = "1.3.6.1.2.1.1.5.0".parse().unwrap();
                plan.also_ask(beside.then_some((name, true)));
                Some(plan)
            });
        }
    }
}

#[test]
fn a_steady_device_is_read_without_decoding() {
    let state = State {
        total: 7,
        levels: vec![50; 5],
        status: 3,
        device: 2,
        errors: 0x40,
        serial: Some(1),
        display: 0,
        alerts: vec![1],
    };
    let responder = Responder::of(&state.text());
    let (first, _) = responder.read(Via::SnmpV2c, None);
    let ([slow, quick], undecoded) = read_both(&responder, [Some(first.plan.clone()), Some(first.plan)], &[]);
    assert_eq!((undecoded, &quick.reading), (1, &first.reading));
    assert_eq!(slow.fresh.answers(), quick.fresh.answers());
}
