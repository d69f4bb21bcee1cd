//! A watched value whose waiters are woken in the order in which they came: tokio's draws lots, which no seed rules.

use std::future::poll_fn;
use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::task::{Poll, Waker};

use openraft::OptionalSend;
use openraft::async_runtime::watch::{self, RecvError, SendError};

use super::runtime::lock;

/// What openraft is given.
#[derive(Debug)]
pub struct Watch;

struct Shared<T> {
    value: RwLock<T>,
    state: Mutex<State>,
}

struct State {
    version: u64,
    senders: usize,
    waiting: Vec<Waker>,
}

impl<T> Shared<T> {
    fn read(&self) -> Ref<'_, T> {
        Ref(self.value.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write(&self) -> RwLockWriteGuard<'_, T> {
        self.value.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, how: impl FnOnce(&mut State)) {
        let waiting = {
            let mut state = lock(&self.state);
            how(&mut state);
            std::mem::take(&mut state.waiting)
        };
        waiting.into_iter().for_each(Waker::wake);
    }
}

/// The value as it is.
pub struct Ref<'a, T>(RwLockReadGuard<'a, T>);

impl<T> Deref for Ref<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0
    }
}

/// Changes the value.
pub struct Sender<T>(Arc<Shared<T>>);

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        lock(&self.0.state).senders += 1;
        Sender(Arc::clone(&self.0))
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        let last = {
            let mut state = lock(&self.0.state);
            state.senders -= 1;
            state.senders == 0
        };
        if last {
            self.0.tell(|_| ());
        }
    }
}

/// Sees changes.
pub struct Receiver<T> {
    shared: Arc<Shared<T>>,
    seen: u64,
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        Receiver { shared: Arc::clone(&self.shared), seen: self.seen }
    }
}

/// A value and who may change it.
pub fn channel<T>(value: T) -> Sender<T> {
    let state = Mutex::new(State { version: 0, senders: 1, waiting: Vec::new() });
    Sender(Arc::new(Shared { value: RwLock::new(value), state }))
}

impl<T> Sender<T> {
    /// Changes the value where `modify` says that it did.
    pub fn modify(&self, modify: impl FnOnce(&mut T) -> bool) -> bool {
        let changed = modify(&mut self.0.write());
        if changed {
            self.0.tell(|state| state.version += 1);
        }
        changed
    }

    /// Who sees changes from now on.
    pub fn follow(&self) -> Receiver<T> {
        Receiver { shared: Arc::clone(&self.0), seen: lock(&self.0.state).version }
    }
}

impl<T> Receiver<T> {
    /// Waits for a change; false when there will be none.
    pub async fn next(&mut self) -> bool {
        let Receiver { shared, seen } = self;
        poll_fn(|context| {
            let mut state = lock(&shared.state);
            if state.version != *seen {
                *seen = state.version;
                return Poll::Ready(true);
            }
            if state.senders == 0 {
                return Poll::Ready(false);
            }
            if !state.waiting.iter().any(|waker| waker.will_wake(context.waker())) {
                state.waiting.push(context.waker().clone());
            }
            Poll::Pending
        })
        .await
    }

    /// The value as it is.
    pub fn look(&self) -> Ref<'_, T> {
        self.shared.read()
    }
}

impl watch::Watch for Watch {
    type Sender<T: OptionalSend + openraft::OptionalSync> = Sender<T>;
    type Receiver<T: OptionalSend + openraft::OptionalSync> = Receiver<T>;
    type Ref<'a, T: OptionalSend + 'a> = Ref<'a, T>;

    fn channel<T: OptionalSend + openraft::OptionalSync>(init: T) -> (Sender<T>, Receiver<T>) {
        let sender = channel(init);
        let receiver = sender.follow();
        (sender, receiver)
    }
}

impl<T: OptionalSend + openraft::OptionalSync> watch::WatchSender<Watch, T> for Sender<T> {
    fn send(&self, value: T) -> Result<(), SendError<T>> {
        if Arc::strong_count(&self.0) <= lock(&self.0.state).senders {
            return Err(SendError(value));
        }
        self.modify(|before| {
            *before = value;
            true
        });
        Ok(())
    }

    fn send_if_modified<F>(&self, modify: F) -> bool
    where
        F: FnOnce(&mut T) -> bool,
    {
        self.modify(modify)
    }

    fn borrow_watched(&self) -> Ref<'_, T> {
        self.0.read()
    }

    fn subscribe(&self) -> Receiver<T> {
        self.follow()
    }
}

impl<T: OptionalSend + openraft::OptionalSync> watch::WatchReceiver<Watch, T> for Receiver<T> {
    async fn changed(&mut self) -> Result<(), RecvError> {
        if self.next().await { Ok(()) } else { Err(RecvError(())) }
    }

    fn borrow_watched(&self) -> Ref<'_, T> {
        self.look()
    }

    fn borrow_and_update(&mut self) -> Ref<'_, T> {
        self.seen = lock(&self.shared.state).version;
        self.look()
    }
}
