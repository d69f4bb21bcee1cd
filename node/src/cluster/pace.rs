//! Raft's clock, which runs as slow as disks and ways between nodes make it: openraft fixes its timeouts when it starts,
//! so they are told in a unit of ours, and here is what the unit lasts.
//!
//! Moments are the machine's own; only lengths of time are stretched, where openraft adds them to a moment or sleeps for
//! them. So another pace counts from the next look on, for leases and timeouts that have begun, too. Each node's Raft has
//! its own pace, which its tasks inherit from the one that started it.
//!
//! What it must never do: make a moment that is not the machine's, for others compare them with theirs; or change the
//! pace between two looks of one poll, for openraft adds up there what it took apart there.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::ops::{Add, AddAssign, Sub, SubAssign};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use openraft::async_runtime::AsyncRuntime;
use openraft::{OptionalSend, TokioRuntime};
use quire_coordinator::timing::{UNKNOWN_MS, heard_ms};

thread_local! {
    /// Of the task that is polled on this thread: its pace, and the beat as it was when the poll began.
    static NOW: RefCell<Option<(Pace, u64)>> = const { RefCell::new(None) };
}

/// Puts back what was there, even where a poll panics.
struct Until(Option<(Pace, u64)>);

impl Drop for Until {
    fn drop(&mut self) {
        NOW.set(self.0.take());
    }
}

/// The beat in force on one node; clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Pace(Arc<AtomicU64>);

impl Default for Pace {
    fn default() -> Self {
        Pace(Arc::new(AtomicU64::new(UNKNOWN_MS)))
    }
}

impl Pace {
    /// The heartbeat, milliseconds.
    pub(crate) fn beat_ms(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Takes another one, within bounds.
    pub(crate) fn set(&self, beat_ms: u64) {
        self.0.store(heard_ms(beat_ms), Ordering::Relaxed);
    }

    /// Runs what starts a Raft at this pace.
    pub(crate) async fn keep<T>(&self, start: impl Future<Output = T>) -> T {
        let mut start = std::pin::pin!(start);
        poll_fn(|context| {
            let _until = Until(NOW.replace(Some((self.clone(), self.beat_ms()))));
            start.as_mut().poll(context)
        })
        .await
    }
}

/// The pace of the Raft whose task asks; elsewhere the unit itself.
fn pace() -> u64 {
    NOW.with_borrow(|now| now.as_ref().map_or(UNKNOWN_MS, |(_, beat_ms)| *beat_ms))
}

/// How long a length of Raft's time lasts.
pub(crate) fn stretch(by: Duration) -> Duration {
    scale(by, pace(), UNKNOWN_MS)
}

/// `by` times a fraction; what is beyond counting is for ever.
fn scale(by: Duration, times: u64, of: u64) -> Duration {
    let nanos = by.as_nanos().saturating_mul(u128::from(times)) / u128::from(of);
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// A moment of the machine's steady clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment(tokio::time::Instant);

impl Moment {
    /// How long ago by the machine's clock.
    pub(crate) fn ago(self) -> Duration {
        self.0.elapsed()
    }
}

/// Some years: longer than any machine runs, and no moment overflows by it.
const LONG: Duration = Duration::from_secs(1 << 28);

impl Add<Duration> for Moment {
    type Output = Moment;
    fn add(self, by: Duration) -> Moment {
        Moment(self.0 + stretch(by).min(LONG))
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
        Moment(self.0.checked_sub(stretch(by)).unwrap_or(self.0))
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
        scale(self.0.saturating_duration_since(earlier.0), UNKNOWN_MS, pace())
    }
}
impl openraft::Instant for Moment {
    fn now() -> Moment {
        Moment(tokio::time::Instant::now())
    }
}

/// Tokio with Raft's clock.
#[derive(Debug)]
pub(crate) struct Paced(TokioRuntime);

impl AsyncRuntime for Paced {
    type JoinError = <TokioRuntime as AsyncRuntime>::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::JoinHandle<T>;
    type Sleep = <TokioRuntime as AsyncRuntime>::Sleep;
    type Instant = Moment;
    type TimeoutError = <TokioRuntime as AsyncRuntime>::TimeoutError;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = <TokioRuntime as AsyncRuntime>::Timeout<R, T>;
    type ThreadLocalRng = <TokioRuntime as AsyncRuntime>::ThreadLocalRng;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        match NOW.with_borrow(|now| now.as_ref().map(|(pace, _)| pace.clone())) {
            Some(pace) => TokioRuntime::spawn(async move { pace.keep(future).await }),
            None => TokioRuntime::spawn(future),
        }
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        Self::sleep_until(<Moment as openraft::Instant>::now() + duration)
    }

    fn sleep_until(deadline: Moment) -> Self::Sleep {
        tokio::time::sleep_until(deadline.0)
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(
        duration: Duration,
        future: F,
    ) -> Self::Timeout<R, F> {
        Self::timeout_at(<Moment as openraft::Instant>::now() + duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(
        deadline: Moment,
        future: F,
    ) -> Self::Timeout<R, F> {
        tokio::time::timeout_at(deadline.0, future)
    }

    fn is_panic(join_error: &Self::JoinError) -> bool {
        TokioRuntime::is_panic(join_error)
    }

    fn thread_rng() -> Self::ThreadLocalRng {
        TokioRuntime::thread_rng()
    }

    type Mpsc = <TokioRuntime as AsyncRuntime>::Mpsc;
    type Watch = <TokioRuntime as AsyncRuntime>::Watch;
    type Oneshot = <TokioRuntime as AsyncRuntime>::Oneshot;
    type Mutex<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::Mutex<T>;

    fn new(threads: usize) -> Self {
        Paced(TokioRuntime::new(threads))
    }

    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        self.0.block_on(future)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use openraft::Instant as _;

    /// How long a unit of Raft's time lasts where this is asked, by the machine's clock.
    fn lasts(unit: Duration) -> Duration {
        let now = Moment::now();
        (now + unit).0 - now.0
    }

    #[tokio::test]
    async fn what_has_begun_ends_by_the_pace_in_force_and_tasks_inherit_it() {
        let (pace, unit) = (Pace::default(), Duration::from_millis(100));
        pace.set(UNKNOWN_MS * 3 / 2);
        let began = Moment::now();
        let other = pace.clone();
        let inside = async move {
            assert_eq!(lasts(unit), unit * 3 / 2);
            let later = Moment(began.0 + 6 * unit);
            assert_eq!(later - began, 4 * unit);
            let expired = move || later > began + 5 * unit;
            let task = Paced::spawn(async move {
                let before = expired();
                other.set(UNKNOWN_MS);
                assert_eq!((expired(), lasts(unit)), (before, unit * 3 / 2), "one poll sees one pace");
                tokio::task::yield_now().await;
                (before, expired(), lasts(unit))
            });
            task.await.unwrap()
        };
        assert_eq!(pace.keep(inside).await, (false, true, unit), "a lease that began at another pace");
        pace.set(UNKNOWN_MS * 3 / 2);
        assert_eq!(lasts(unit), unit, "elsewhere no pace counts");
        pace.set(0);
        assert_eq!(pace.beat_ms(), UNKNOWN_MS);
    }

    #[tokio::test]
    async fn no_length_of_time_is_too_long() {
        let now = Moment::now();
        assert!(now + Duration::MAX > now);
        assert!(now - Duration::MAX < now);
    }
}
