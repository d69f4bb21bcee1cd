//! A node's day: sweeps one by one, reads spread evenly, take-overs without a herd.

use super::*;
use proptest::prelude::*;

const HOUR: u64 = 3_600_000;
/// 22 November 2026, 11:00 UTC, a Sunday.
const NOW: Millis = Millis(1_795_345_200_000);

fn roster(reads: usize) -> Roster {
    Roster::new(Schedule::parse("daily 02:00").unwrap(), HOUR, Limits { sweeps: 1, reads })
}

fn unit(n: u8) -> UnitId {
    format!("any:10.0.{n}.0/24").parse().unwrap()
}

fn own(n: u8, swept_at: u64) -> OwnUnit {
    OwnUnit { unit: unit(n), epoch: Epoch(7), swept_at: Millis(swept_at), sweep: None, asked_at: Millis(0) }
}

fn swept(n: u8) -> OwnUnit {
    own(n, NOW.0)
}

fn device(n: u64, metered_at: u64) -> DeviceDue {
    let id = DeviceId::mint(1, n, 0);
    DeviceDue { id, unit: unit(0), metered_at: Millis(metered_at), misses: 0, asked_at: Millis(0) }
}

fn sweep_of(task: Option<Task>) -> (UnitId, Millis) {
    match task {
        Some(Task::Sweep { unit, started_at, .. }) => (unit, started_at),
        other => panic!("expected a sweep, got {other:?}"),
    }
}

#[test]
fn new_units_are_swept_at_once_one_at_a_time_and_then_by_the_schedule() {
    let mut roster = roster(1);
    roster.set_units(&[own(1, 0), own(2, 0)]);
    let first = roster.poll(NOW).unwrap();
    assert_eq!(sweep_of(Some(first.clone())), (unit(1), NOW));
    assert_eq!(roster.poll(NOW), None);
    roster.handle_done(&first, Millis(NOW.0 + 5_000));
    // The tables lag: the row still says "never".
    roster.set_units(&[own(1, 0), own(2, 0)]);
    let second = roster.poll(NOW).unwrap();
    assert_eq!(sweep_of(Some(second.clone())).0, unit(2));
    roster.handle_done(&second, NOW);
    let tonight: Millis = "2026-11-23T02:00:00Z".parse().unwrap();
    assert_eq!((roster.poll(NOW), roster.poll_timeout()), (None, Some(tonight)));
    assert_eq!(sweep_of(roster.poll(tonight)).0, unit(1));
}

#[test]
fn a_new_owner_takes_up_what_was_begun_and_requests_go_first() {
    let mut begun = own(2, 0);
    begun.sweep = Some(Progress { started_at: Millis(NOW.0 - 9_000), finished: false });
    let mut asked = swept(3);
    asked.asked_at = Millis(NOW.0 + 1);
    let mut roster = roster(1);
    roster.set_units(&[own(1, 0), begun, asked]);
    let mut order = Vec::new();
    while let Some(task) = roster.poll(Millis(NOW.0 + 2)) {
        order.push(sweep_of(Some(task.clone())));
        roster.handle_done(&task, Millis(NOW.0 + 2));
    }
    let later = Millis(NOW.0 + 2);
    assert_eq!(order, [(unit(3), later), (unit(2), Millis(NOW.0 - 9_000)), (unit(1), later)]);
}

#[test]
fn a_request_by_a_clock_that_is_ahead_is_answered_once() {
    let mut roster = roster(1);
    let ahead = Millis(NOW.0 + HOUR);
    roster.set_units(&[OwnUnit { asked_at: ahead, ..swept(0) }]);
    roster.set_device(&DeviceDue { asked_at: ahead, ..device(1, NOW.0 - 1) }, NOW);
    let (sweep, read) = (roster.poll(NOW).unwrap(), roster.poll(NOW).unwrap());
    assert!(matches!((&sweep, &read), (Task::Sweep { .. }, Task::Read { .. })));
    // What is stopped is tried again, and what failed after a while.
    roster.handle_stopped(&sweep);
    roster.handle_stopped(&read);
    assert_eq!([roster.poll(NOW), roster.poll(NOW)], [Some(sweep.clone()), Some(read.clone())]);
    roster.handle_failed(&sweep, NOW);
    let retry = Millis(NOW.0 + SWEEP_RETRY_AFTER_MS - 1);
    assert_eq!(roster.poll(retry), None);
    let ahead = Millis(retry.0 + HOUR);
    roster.set_unit(&OwnUnit { asked_at: ahead, ..swept(0) });
    let sweep = roster.poll(Millis(retry.0 + 1)).unwrap();
    [&sweep, &read].into_iter().for_each(|task| roster.handle_done(task, Millis(retry.0 + 2)));
    assert_eq!(roster.poll(Millis(retry.0 + 3)), None, "answered, although it was asked later than now");
    // The rows come, and still say that it was asked for later than it was done.
    roster.set_units(&[OwnUnit { asked_at: ahead, ..own(0, retry.0 + 1) }]);
    roster.set_device(&DeviceDue { asked_at: Millis(NOW.0 + HOUR), ..device(1, retry.0 + 1) }, NOW);
    assert_eq!(roster.poll(Millis(retry.0 + 3)), None);
    // Another request is one, whatever its clock.
    roster.set_unit(&OwnUnit { asked_at: Millis(retry.0 + 4), ..own(0, retry.0 + 1) });
    assert_eq!(sweep_of(roster.poll(Millis(retry.0 + 4))).0, unit(0));
}

#[test]
fn clocks_that_differ_a_little_make_one_sweep_of_a_request() {
    let mut roster = roster(1);
    let asked_at = Millis(NOW.0 + 700);
    roster.set_units(&[OwnUnit { asked_at, ..own(0, NOW.0 - HOUR) }]);
    let task = roster.poll(NOW).unwrap();
    assert_eq!(sweep_of(Some(task.clone())), (unit(0), asked_at), "it answers the request in the rows, too");
    // Done before that clock's time has come, so the row says that it was done before it was asked for.
    roster.handle_done(&task, Millis(NOW.0 + 500));
    assert_eq!((roster.poll(Millis(NOW.0 + 500)), roster.poll_timeout()), (None, Some(asked_at)));
    let task = roster.poll(asked_at).unwrap();
    assert_eq!(sweep_of(Some(task.clone())), (unit(0), asked_at));
    roster.handle_done(&task, Millis(asked_at.0 + 500));
    assert_eq!(roster.poll(Millis(asked_at.0 + 500)), None);
}

#[test]
fn sweeps_wait_for_quorum_and_after_failures() {
    let mut roster = roster(1);
    roster.set_units(&[own(1, 0)]);
    roster.set_sweeping(false);
    assert_eq!((roster.poll(NOW), roster.poll_timeout()), (None, None));
    roster.set_sweeping(true);
    let task = roster.poll(NOW).unwrap();
    roster.handle_failed(&task, NOW);
    assert_eq!(roster.poll(NOW), None);
    assert_eq!(roster.poll_timeout(), Some(Millis(NOW.0 + SWEEP_RETRY_AFTER_MS)));
    assert!(roster.poll(Millis(NOW.0 + SWEEP_RETRY_AFTER_MS)).is_some());
}

#[test]
fn several_units_are_swept_at_once_and_never_more_than_may_be() {
    let mut roster = Roster::new(Schedule::default(), HOUR, Limits { sweeps: 3, reads: 1 });
    roster.set_units(&[own(1, 0), own(2, 0), own(3, 0), own(4, 0)]);
    roster.set_device(&DeviceDue { unit: unit(1), ..device(1, 0) }, NOW);
    let tasks: Vec<Task> = std::iter::from_fn(|| roster.poll(NOW)).collect();
    assert_eq!(tasks.len(), 4, "three sweeps, and a read has its own place: {tasks:?}");
    roster.handle_done(&tasks[1], NOW);
    assert_eq!(sweep_of(roster.poll(NOW)).0, unit(4));
    assert_eq!(roster.poll(NOW), None);
}

#[test]
fn a_stopped_sweep_is_due_again_at_once_if_it_still_is_ours() {
    let mut roster = roster(1);
    roster.set_units(&[own(1, 0)]);
    let task = roster.poll(NOW).unwrap();
    let begun = Progress { started_at: NOW, finished: false };
    let mine = OwnUnit { sweep: Some(begun), ..own(1, 0) };
    roster.set_unit(&mine);
    roster.handle_stopped(&task);
    let again = roster.poll(Millis(NOW.0 + 9_000)).unwrap();
    assert_eq!(sweep_of(Some(again.clone())), (unit(1), NOW), "the same sweep goes on");
    roster.set_units(&[]);
    roster.handle_stopped(&again);
    assert_eq!(roster.poll(Millis(NOW.0 + 9_000)), None);
}

#[test]
fn devices_of_units_that_left_are_forgotten() {
    let mut roster = roster(1);
    roster.set_units(&[swept(0), swept(1)]);
    roster.set_device(&device(1, 0), NOW);
    roster.set_device(&DeviceDue { unit: unit(1), ..device(2, 0) }, NOW);
    roster.set_units(&[swept(1)]);
    roster.forget_foreign();
    assert_eq!(roster.devices(), 1);
    assert_eq!(roster.poll(NOW), Some(Task::Read { device: device(2, 0).id }));
}

#[test]
fn a_sweep_under_an_old_grant_does_not_count() {
    let mut roster = roster(1);
    roster.set_units(&[own(1, 0)]);
    let task = roster.poll(NOW).unwrap();
    let mut regranted = own(1, 0);
    regranted.epoch = Epoch(8);
    roster.set_units(&[regranted]);
    assert_eq!(roster.epoch(&unit(1)), Some(Epoch(8)));
    roster.handle_done(&task, NOW);
    assert!(matches!(roster.poll(NOW), Some(Task::Sweep { epoch: Epoch(8), .. })));
    roster.set_units(&[]);
    assert_eq!((roster.epoch(&unit(1)), roster.poll(NOW)), (None, None));
}

#[test]
fn reads_are_spread_over_the_period() {
    let mut roster = roster(1_000);
    roster.set_units(&[swept(0)]);
    // Everything was read in one minute, as a first sweep does.
    (0..6_000).for_each(|n| roster.set_device(&device(n, NOW.0), NOW));
    let mut by_tenth = [0; 11];
    let end = NOW.0 + HOUR + HOUR / 10;
    while let Some(at) = roster.poll_timeout().filter(|at| at.0 < end) {
        let task = roster.poll(at).unwrap();
        by_tenth[usize::try_from((at.0 - NOW.0) * 10 / HOUR).unwrap()] += 1;
        roster.handle_done(&task, at);
        // No set_device: each device would be read again only in its next turn.
    }
    assert!(by_tenth[1..=10].iter().all(|reads| (500..700).contains(reads)), "{by_tenth:?}");
    assert_eq!((by_tenth[0], by_tenth.iter().sum::<i32>()), (0, 6_000));
}

#[test]
fn what_a_calendar_that_was_ahead_stamped_waits_no_longer_than_its_turn() {
    let mut roster = roster(1_000);
    let ahead = NOW.0 + 60 * 24 * HOUR;
    roster.set_units(&[own(0, ahead), own(1, NOW.0)]);
    (0..50).for_each(|n| roster.set_device(&device(n, ahead + n), NOW));
    roster.set_device(&DeviceDue { misses: 1, ..device(50, ahead) }, Millis(ahead));
    assert_eq!(roster.poll(NOW), None, "all wait for their turns");
    let (mut reads, mut now) = (0, NOW);
    while let Some(due) = roster.poll_timeout().filter(|due| due.0 <= NOW.0 + 2 * HOUR) {
        now = now.max(due);
        let task = roster.poll(now).unwrap();
        let Task::Read { device: id } = &task else { panic!("{task:?}") };
        reads += 1;
        roster.handle_done(&task, now);
        roster.set_device(&DeviceDue { id: id.clone(), ..device(0, now.0) }, now);
    }
    assert!((51..=2 * 51).contains(&reads), "{reads} reads in two periods");
    let tonight: Millis = "2026-11-23T02:00:00Z".parse().unwrap();
    let slots: Vec<Millis> = roster.sweeps.iter().map(|(due, _)| *due).collect();
    assert_eq!(slots, [tonight, tonight]);
}

#[test]
fn what_is_asked_for_after_a_calendar_was_set_right_is_done() {
    let mut roster = roster(1);
    let ahead = Millis(NOW.0 + HOUR);
    roster.set_units(&[own(0, NOW.0 - HOUR), own(1, 0)]);
    roster.set_device(&device(1, NOW.0 - 2 * HOUR), ahead);
    roster.set_units(&[OwnUnit { asked_at: Millis(NOW.0 - 1), ..own(0, NOW.0 - HOUR) }, own(1, 0)]);
    let tasks: Vec<Task> = std::iter::from_fn(|| roster.poll(ahead)).collect();
    tasks.iter().for_each(|task| roster.handle_done(task, ahead));
    let failed = roster.poll(ahead).unwrap();
    roster.handle_failed(&failed, ahead);
    // Set right. What was recorded has the leader's time.
    let asked_at = Millis(NOW.0 + 5);
    assert_eq!(roster.poll(NOW), None);
    roster.set_unit(&OwnUnit { asked_at, ..own(0, NOW.0) });
    roster.set_device(&DeviceDue { asked_at, ..device(1, NOW.0) }, NOW);
    let now = Millis(NOW.0 + 9);
    let tasks = [roster.poll(now).unwrap(), roster.poll(now).unwrap()];
    assert_eq!(sweep_of(Some(tasks[0].clone())), (unit(0), now));
    assert_eq!(tasks[1], Task::Read { device: device(1, 0).id });
    roster.handle_stopped(&tasks[0]);
    // What was begun goes on, and what failed is tried again.
    let begun = Some(Progress { started_at: now, finished: false });
    roster.set_unit(&OwnUnit { asked_at, sweep: begun, ..own(0, NOW.0) });
    let later = Millis(NOW.0 + SWEEP_RETRY_AFTER_MS);
    let task = roster.poll(later).unwrap();
    assert_eq!(sweep_of(Some(task.clone())), (unit(0), now));
    roster.handle_done(&task, later);
    assert_eq!(sweep_of(roster.poll(later)).0, unit(1));
}

#[test]
fn a_sweep_begun_by_a_calendar_that_is_ahead_holds_up_nothing_once_it_is_done() {
    let mut roster = roster(1);
    let started_at = Millis(NOW.0 + 60 * 24 * HOUR);
    let begun = OwnUnit { sweep: Some(Progress { started_at, finished: false }), ..own(0, 0) };
    roster.set_units(std::slice::from_ref(&begun));
    let task = roster.poll(NOW).unwrap();
    assert_eq!(sweep_of(Some(task.clone())).1, started_at, "it goes on");
    roster.handle_done(&task, NOW);
    assert_eq!(roster.poll(NOW), None, "although the row does not show it yet");
    let sweep = Some(Progress { started_at: NOW, finished: true });
    let later = Millis(NOW.0 + 9);
    roster.set_unit(&OwnUnit { sweep, asked_at: later, ..own(0, NOW.0) });
    assert_eq!(sweep_of(roster.poll(later)).1, later);
}

#[test]
fn a_take_over_reads_the_most_overdue_first_and_living_before_dead() {
    let mut roster = roster(1);
    let rows = [device(1, NOW.0 - 3 * HOUR), device(2, NOW.0 - 9 * HOUR), device(3, NOW.0 - 6 * HOUR)];
    rows.iter().for_each(|row| roster.set_device(row, NOW));
    roster.set_device(&DeviceDue { misses: 4, ..device(4, NOW.0 - 99 * HOUR) }, NOW);
    roster.set_device(&DeviceDue { asked_at: NOW, ..device(5, NOW.0 - 1) }, NOW);
    assert_eq!(roster.poll(NOW), None, "not this node's unit yet");
    roster.set_units(&[swept(0)]);
    let mut order = Vec::new();
    while let Some(task) = roster.poll(NOW) {
        let Task::Read { device } = &task else { panic!() };
        order.push(device.clone());
        assert_eq!(roster.poll(NOW), None, "one at a time here");
        roster.handle_done(&task, Millis(NOW.0 + 1));
    }
    assert_eq!(order, [5, 2, 3, 1].map(|n| device(n, 0).id));
}

#[test]
fn silent_devices_are_tried_less_often_but_once_a_period() {
    let mut roster = roster(1);
    roster.set_units(&[swept(0)]);
    let mut row = device(1, NOW.0 - 2 * HOUR);
    roster.set_device(&row, NOW);
    let mut waits = Vec::new();
    let mut now = NOW;
    for _ in 0..9 {
        let task = roster.poll(now).unwrap();
        roster.handle_done(&task, now);
        row.misses += 1;
        roster.set_device(&row, now);
        let next = roster.poll_timeout().unwrap();
        waits.push((next.0 - now.0) / 60_000);
        now = next;
    }
    assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
}

#[test]
fn removed_devices_are_forgotten_even_while_read() {
    let mut roster = roster(2);
    roster.set_units(&[swept(0)]);
    (1..=2).for_each(|n| roster.set_device(&device(n, 0), NOW));
    let task = roster.poll(NOW).unwrap();
    (1..=2).for_each(|n| roster.remove_device(&device(n, 0).id));
    assert_eq!((roster.poll(NOW), roster.devices()), (None, 0));
    roster.handle_done(&task, NOW);
    roster.set_device(&device(3, 0), NOW);
    assert_eq!(roster.poll(NOW), Some(Task::Read { device: device(3, 0).id }));
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Pass(u64),
    Units(u8),
    Device(u64, u8, u64, u32),
    Remove(u64),
    Poll,
    Done(usize),
    Fail(usize),
    Sweeping(bool),
    Every(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (0..2 * HOUR).prop_map(Step::Pass),
        any::<u8>().prop_map(Step::Units),
        (0u64..12, 0u8..4, 0..5 * HOUR, 0u32..3)
            .prop_map(|(n, u, ago, misses)| Step::Device(n, u, ago, misses)),
        (0u64..12).prop_map(Step::Remove),
        Just(Step::Poll),
        Just(Step::Poll),
        (0usize..5).prop_map(Step::Done),
        (0usize..5).prop_map(Step::Fail),
        any::<bool>().prop_map(Step::Sweeping),
        (10_000u64..HOUR).prop_map(Step::Every),
    ];
    prop::collection::vec(step, 0..120)
}

proptest! {
    /// Whatever comes when: bounds hold, nothing runs twice, tasks are this node's, `poll_timeout` tells the truth.
    #[test]
    fn tasks_are_single_bounded_and_ours(steps in steps()) {
        let (mut roster, mut now, mut running, mut owned) = (roster(3), NOW, Vec::<Task>::new(), 0u8);
        let (mut homes, mut every) = (BTreeMap::new(), HOUR);
        for step in steps {
            match step {
                Step::Pass(ms) => now.0 += ms,
                Step::Units(mask) => {
                    owned = mask;
                    let rows: Vec<OwnUnit> = (0..8).filter(|n| mask >> n & 1 == 1).map(|n| own(n, 0)).collect();
                    roster.set_units(&rows);
                }
                Step::Device(n, home, ago, misses) => {
                    let row = DeviceDue { unit: unit(home), misses, ..device(n, now.0 - ago) };
                    homes.insert(row.id.clone(), home);
                    roster.set_device(&row, now);
                }
                Step::Remove(n) => {
                    homes.remove(&device(n, 0).id);
                    roster.remove_device(&device(n, 0).id);
                }
                Step::Poll => {
                    let expected = roster.poll_timeout().is_some_and(|at| at <= now);
                    let task = roster.poll(now);
                    prop_assert_eq!(task.is_some(), expected);
                    if let Some(task) = task {
                        let home = match &task {
                            Task::Sweep { unit: swept, .. } => (0..8).find(|n| unit(*n) == *swept),
                            Task::Read { device } => homes.get(device).copied(),
                        };
                        prop_assert!(home.is_some_and(|n| owned >> n & 1 == 1), "{:?}", task);
                        prop_assert!(!running.contains(&task));
                        running.push(task);
                    }
                }
                Step::Done(n) if n < running.len() => roster.handle_done(&running.remove(n), now),
                Step::Fail(n) if n < running.len() => roster.handle_failed(&running.remove(n), now),
                Step::Done(_) | Step::Fail(_) => {}
                Step::Sweeping(allowed) => roster.set_sweeping(allowed),
                Step::Every(ms) => {
                    every = ms;
                    roster.set_settings(Schedule::parse("every 1h").unwrap(), ms);
                }
            }
            let sweeps = running.iter().filter(|task| matches!(task, Task::Sweep { .. })).count();
            prop_assert!(sweeps <= 1 && running.len() - sweeps <= 3);
        }
        // Once nothing runs, every device of an owned unit has a turn within the period and a tenth.
        running.drain(..).for_each(|task| roster.handle_done(&task, now));
        roster.set_sweeping(false);
        let last = now.0 + every + every / 10 + 1;
        let due = roster.devices.iter().flatten().filter(|d| roster.owned.contains(&d.unit));
        prop_assert!(due.clone().all(|device| device.due.is_some_and(|at| at.0 <= last)));
    }

    #[test]
    fn turns_come_once_a_period(at in 0u64..1 << 45, every in 1u64..1 << 32, hash in any::<u64>()) {
        let phase = hash % every;
        let next = next_turn(at, phase, every);
        prop_assert!(next.0 > at);
        prop_assert!(next.0 <= at + every && next.0 % every == phase);
    }
}
