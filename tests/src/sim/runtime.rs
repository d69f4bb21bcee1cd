//! Time, chance and processes of a simulated cluster: everything that runs, runs on one thread, and time passes only when
//! nothing else is to be done.
//!
//! A task belongs to a [`Process`], or to the world around all of them. A process can stand still (its tasks are not
//! polled while the world goes on), be suspended (its clocks stand still, too), and be killed (its tasks never run
//! again). Openraft runs on [`SimRuntime`], so its timers, its dice and its tasks obey the same rules.
//!
//! Never: asks the machine's clock or its source of randomness, so a seed is the whole truth about a run.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::future::Future;
use std::ops::{Add, AddAssign, Sub, SubAssign};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use openraft::Instant;
use quire_coordinator::timing::{UNKNOWN_MS, heard_ms};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

use super::watch;

thread_local! {
    static WORLD: RefCell<Option<Origin>> = const { RefCell::new(None) };
    static CURRENT: RefCell<Option<Arc<Process>>> = const { RefCell::new(None) };
}

struct Origin {
    now: Duration,
    dice: SmallRng,
    ready: VecDeque<Arc<Task>>,
    /// By when, then by who asked first.
    timers: BTreeMap<(Duration, u64), Waker>,
    asked: u64,
}

fn world<T>(act: impl FnOnce(&mut Origin) -> T) -> Option<T> {
    WORLD.try_with(|world| world.borrow_mut().as_mut().map(act)).ok().flatten()
}

/// Runs a future in a world of its own, which begins with it: chance with `seed`, time at zero. All other tasks end with
/// it.
///
/// # Panics
/// When nothing is left that could ever finish it.
pub fn block_on<T: Send + 'static>(seed: u64, future: impl Future<Output = T> + Send + 'static) -> T {
    let origin = Origin {
        now: Duration::ZERO,
        dice: SmallRng::seed_from_u64(seed),
        ready: VecDeque::new(),
        timers: BTreeMap::new(),
        asked: 0,
    };
    WORLD.with(|world| *world.borrow_mut() = Some(origin));
    let result = Arc::new(Mutex::new(None));
    let out = Arc::clone(&result);
    drop(spawn_in(None, async move {
        let value = future.await;
        *lock(&out) = Some(value);
    }));
    loop {
        if let Some(task) = world(|world| world.ready.pop_front()).flatten() {
            task.run();
        } else if let Some(value) = lock(&result).take() {
            // Tasks hold each other: taken out of the world first, so that what their ends wake finds none.
            drop(WORLD.with(|world| world.borrow_mut().take()));
            return value;
        } else {
            let next = world(|world| {
                let first = world.timers.pop_first()?;
                world.now = world.now.max(first.0.0);
                Some(first.1)
            });
            next.flatten().expect("something that waits for the time").wake();
        }
    }
}

/// The world's time since the beginning.
#[must_use]
pub fn elapsed() -> Duration {
    world(|world| world.now).unwrap_or_default()
}

/// Fresh dice of their own, so that what one part draws does not shift what another draws.
#[must_use]
pub fn dice() -> SmallRng {
    SmallRng::seed_from_u64(world(|world| world.dice.random()).unwrap_or_default())
}

/// A number from `range`, from the world's dice.
pub fn pick(range: std::ops::Range<u64>) -> u64 {
    world(|world| world.dice.random_range(range.clone())).unwrap_or(range.start)
}

/// True in `parts` of a thousand cases.
pub fn chance(parts: u64) -> bool {
    parts > 0 && pick(0..1000) < parts
}

/// What never poisons: a panic ends the whole run.
pub fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A process of a simulated machine.
pub struct Process {
    /// Counts all processes of a run.
    pub serial: u64,
    /// The unit of its Raft's clock, milliseconds, as the node's `pace` has it.
    beat_ms: AtomicU64,
    state: Mutex<State>,
    ended: watch::Sender<bool>,
}

#[derive(Default)]
struct State {
    dead: bool,
    /// Since when it stands still, by the world's clock, and whether its own clocks do, too.
    still: Option<(Duration, bool)>,
    /// How long its clocks have stood still.
    behind: Duration,
    /// What its calendar is ahead of the world's, milliseconds.
    ahead_ms: i64,
    waiting: Vec<Arc<Task>>,
    tasks: Vec<Arc<Task>>,
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Process({})", self.serial)
    }
}

impl Process {
    /// A process that has no tasks yet; its calendar is `ahead_ms` ahead.
    #[must_use]
    pub fn new(serial: u64, ahead_ms: i64) -> Arc<Process> {
        let state = Mutex::new(State { ahead_ms, ..State::default() });
        let beat_ms = AtomicU64::new(UNKNOWN_MS);
        Arc::new(Process { serial, beat_ms, state, ended: watch::channel(false) })
    }

    /// Stands still until [`Process::go_on`]; with `clocks`, so do its clocks.
    pub fn stand_still(&self, clocks: bool) {
        lock(&self.state).still.get_or_insert((elapsed(), clocks));
    }

    /// Runs again.
    pub fn go_on(&self) {
        let waiting = {
            let mut state = lock(&self.state);
            if let Some((since, clocks)) = state.still.take()
                && clocks
            {
                state.behind += elapsed().saturating_sub(since);
            }
            std::mem::take(&mut state.waiting)
        };
        for task in waiting {
            task.queued.store(false, Ordering::Relaxed);
            task.wake();
        }
    }

    /// Its calendar jumps to so much ahead of the world's.
    pub fn set_calendar(&self, ahead_ms: i64) {
        lock(&self.state).ahead_ms = ahead_ms;
    }

    /// The heartbeat of its Raft, milliseconds.
    pub fn beat_ms(&self) -> u64 {
        self.beat_ms.load(Ordering::Relaxed)
    }

    /// Another heartbeat.
    pub fn set_beat(&self, beat_ms: u64) {
        self.beat_ms.store(heard_ms(beat_ms), Ordering::Relaxed);
    }

    /// No task of it runs again.
    pub fn kill(&self) {
        let (tasks, waiting) = {
            let mut state = lock(&self.state);
            state.dead = true;
            (std::mem::take(&mut state.tasks), std::mem::take(&mut state.waiting))
        };
        drop(waiting);
        tasks.iter().for_each(|task| task.abort());
        self.ended.modify(|ended| !std::mem::replace(ended, true));
    }

    /// Whether it was killed, or ended itself.
    pub fn is_dead(&self) -> bool {
        lock(&self.state).dead
    }

    /// Whether it stands still.
    pub fn is_still(&self) -> bool {
        lock(&self.state).still.is_some()
    }

    /// Returns once it is dead.
    pub async fn end(&self) {
        let mut ended = self.ended.follow();
        while !*ended.look() && ended.next().await {}
    }

    fn now(&self) -> Duration {
        let state = lock(&self.state);
        let frozen = state.still.filter(|(_, clocks)| *clocks).map(|(since, _)| since);
        frozen.unwrap_or_else(elapsed).saturating_sub(state.behind)
    }

    fn adopt(&self, task: &Arc<Task>) {
        let mut state = lock(&self.state);
        if state.dead {
            drop(state);
            return task.abort();
        }
        if state.tasks.len() % 256 == 255 {
            state.tasks.retain(|task| lock(&task.future).is_some() || task.running.load(Ordering::Relaxed));
        }
        state.tasks.push(Arc::clone(task));
    }
}

/// The process that runs just now.
#[must_use]
pub fn current() -> Option<Arc<Process>> {
    CURRENT.with(|current| current.borrow().clone())
}

/// The calendar where this is asked, milliseconds since 1970.
#[must_use]
pub fn calendar_ms() -> u64 {
    let ahead = current().map_or(0, |process| lock(&process.state).ahead_ms);
    (EPOCH_MS + u64::try_from(elapsed().as_millis()).unwrap_or(0)).saturating_add_signed(ahead)
}

/// When every run begins: Sunday, 22 November 2026, 12:00 UTC, so that no run sees the slot of Monday 02:00.
pub const EPOCH_MS: u64 = 1_795_348_800_000;

/// The steady clock where this is asked.
#[must_use]
pub fn steady() -> Duration {
    current().map_or_else(elapsed, |process| process.now())
}

type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

struct Task {
    process: Option<Arc<Process>>,
    future: Mutex<Option<Work>>,
    queued: AtomicBool,
    running: AtomicBool,
    aborted: AtomicBool,
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        if !self.queued.swap(true, Ordering::Relaxed) {
            // A world that has ended runs nobody.
            let _ = world(|world| world.ready.push_back(self));
        }
    }
}

impl Task {
    fn run(self: Arc<Self>) {
        self.queued.store(false, Ordering::Relaxed);
        if let Some(process) = &self.process {
            let mut state = lock(&process.state);
            if state.still.is_some() && !state.dead {
                // Queued there: further wakes add nothing.
                self.queued.store(true, Ordering::Relaxed);
                state.waiting.push(Arc::clone(&self));
                return;
            }
        }
        let Some(mut future) = lock(&self.future).take() else { return };
        let waker = Waker::from(Arc::clone(&self));
        let before = CURRENT.with(|current| current.replace(self.process.clone()));
        self.running.store(true, Ordering::Relaxed);
        let polled = future.as_mut().poll(&mut Context::from_waker(&waker));
        self.running.store(false, Ordering::Relaxed);
        if polled.is_pending() && !self.aborted.load(Ordering::Relaxed) {
            *lock(&self.future) = Some(future);
        } else {
            drop(future);
        }
        CURRENT.with(|current| *current.borrow_mut() = before);
    }

    fn abort(&self) {
        self.aborted.store(true, Ordering::Relaxed);
        let future = lock(&self.future).take();
        drop(future);
    }
}

/// The outcome of a task, for whoever waits.
pub struct JoinHandle<T> {
    task: Arc<Task>,
    outcome: tokio::sync::oneshot::Receiver<T>,
}

/// The task was aborted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Aborted;

impl fmt::Display for Aborted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the task was aborted")
    }
}

impl<T> JoinHandle<T> {
    /// Ends the task where it stands.
    pub fn abort(&self) {
        self.task.abort();
    }
}

impl<T> Future for JoinHandle<T> {
    type Output = Result<T, Aborted>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.outcome).poll(context).map_err(|_| Aborted)
    }
}

/// Runs a task of a process, or of the world.
pub fn spawn_in<F>(process: Option<Arc<Process>>, future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    let (done, outcome) = tokio::sync::oneshot::channel();
    let future: Work = Box::pin(async move {
        let _ = done.send(future.await);
    });
    let task = Arc::new(Task {
        process: process.clone(),
        future: Mutex::new(Some(future)),
        queued: AtomicBool::new(false),
        running: AtomicBool::new(false),
        aborted: AtomicBool::new(false),
    });
    if let Some(process) = process {
        process.adopt(&task);
    }
    Arc::clone(&task).wake();
    JoinHandle { task, outcome }
}

/// Runs a task of the process that asks.
pub fn spawn<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    spawn_in(current(), future)
}

/// `by` as long as it lasts at the pace of the process that asks.
pub fn stretch(by: Duration) -> Duration {
    scale(by, beat_ms(), UNKNOWN_MS)
}

/// The heartbeat in force in the process that asks, milliseconds.
pub fn beat_ms() -> u64 {
    current().map_or(UNKNOWN_MS, |process| process.beat_ms())
}

fn scale(by: Duration, times: u64, of: u64) -> Duration {
    let nanos = by.as_nanos().saturating_mul(u128::from(times)) / u128::from(of);
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// A moment of the steady clock of the process that asked. As in the node, lengths of time that Raft adds are stretched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(pub Duration);

impl Add<Duration> for Moment {
    type Output = Moment;
    fn add(self, by: Duration) -> Moment {
        Moment(self.0.saturating_add(stretch(by)))
    }
}
impl AddAssign<Duration> for Moment {
    fn add_assign(&mut self, by: Duration) {
        *self = *self + by;
    }
}
impl Sub<Duration> for Moment {
    type Output = Moment;
    fn sub(self, by: Duration) -> Moment {
        Moment(self.0.saturating_sub(stretch(by)))
    }
}
impl SubAssign<Duration> for Moment {
    fn sub_assign(&mut self, by: Duration) {
        *self = *self - by;
    }
}
impl Sub<Moment> for Moment {
    type Output = Duration;
    fn sub(self, earlier: Moment) -> Duration {
        scale(self.0.saturating_sub(earlier.0), UNKNOWN_MS, beat_ms())
    }
}
impl Moment {
    /// How long ago by the process's clock.
    #[must_use]
    pub fn ago(self) -> Duration {
        Moment::now().0.saturating_sub(self.0)
    }
}
impl Instant for Moment {
    fn now() -> Moment {
        // Clocks of processes begin at a while after zero, so that subtracting does not saturate.
        Moment(steady() + Duration::from_secs(86_400))
    }
}

/// Sleeps by the clock of the process that asked: while that stands still, the end moves away.
pub struct Sleep {
    until: Moment,
    timer: Option<(Duration, u64)>,
}

impl Sleep {
    pub(super) fn until(until: Moment) -> Sleep {
        Sleep { until, timer: None }
    }

    fn forget(&mut self) {
        if let Some(timer) = self.timer.take() {
            // A waker that is dropped may end a task, which may have timers: not inside.
            drop(world(|world| world.timers.remove(&timer)));
        }
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.forget();
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        self.forget();
        let now = Moment::now();
        if now >= self.until {
            return Poll::Ready(());
        }
        let (left, waker) = (self.until.0.saturating_sub(now.0), context.waker().clone());
        self.timer = world(|world| {
            world.asked += 1;
            let timer = (world.now + left, world.asked);
            world.timers.insert(timer, waker);
            timer
        });
        Poll::Pending
    }
}

/// Sleeps.
#[must_use]
pub fn sleep(by: Duration) -> Sleep {
    Sleep::until(Moment(Moment::now().0.saturating_add(by)))
}

/// Sleeps so many milliseconds.
#[must_use]
pub fn sleep_ms(by: u64) -> Sleep {
    sleep(Duration::from_millis(by))
}

/// The time was up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Elapsed;

impl fmt::Display for Elapsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the time was up")
    }
}

/// A future with an end.
pub struct Timeout<F> {
    pub(super) sleep: Sleep,
    pub(super) inner: Pin<Box<F>>,
}

impl<F: Future> Future for Timeout<F> {
    type Output = Result<F::Output, Elapsed>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if let Poll::Ready(output) = self.inner.as_mut().poll(context) {
            return Poll::Ready(Ok(output));
        }
        Pin::new(&mut self.sleep).poll(context).map(|()| Err(Elapsed))
    }
}

/// Waits for `inner`, but not longer than `by`.
pub fn timeout<F: Future>(by: Duration, inner: F) -> Timeout<F> {
    Timeout { sleep: sleep(by), inner: Box::pin(inner) }
}
