//! A second pair of hands for a sweep in haste: a thread that sends one full batch while the engine fills and sends the
//! next. Nearly all of a packet's cost is the kernel's, so two processors send nearly twice as much. The thread starts
//! with the first full batch, and only a sweep without a ceiling fills batches; it ends with the engine.

use std::io;
use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::time::Duration;

use super::socket::{Batch, Sockets, send_some};

/// Batches on their way to the thread or back: one that it sends, one that waits for it, one that comes back.
const BATCHES: usize = 3;

/// How long the thread waits for room in a socket's buffer, which holds more than a thousand packets and empties at
/// the speed of the link.
const PAUSE: Duration = Duration::from_millis(1);

/// What became of a batch: its buffers, and whom it did not go to, with whether that was for a full queue.
type Sent = (Batch, Vec<(SocketAddr, bool)>);

/// The thread, once there is one.
pub(super) struct Helper {
    full: SyncSender<Batch>,
    sent: Receiver<Sent>,
    spare: Vec<Batch>,
}

impl Helper {
    /// Starts the thread with sockets of its own that are the engine's.
    pub(super) fn start(sockets: &Sockets) -> io::Result<Helper> {
        let (v4, v6) = sockets.duplicate()?;
        let (full, batches) = sync_channel::<Batch>(1);
        let (done, sent) = sync_channel(BATCHES);
        let work = move || {
            for mut batch in batches {
                let refused = drain(&mut batch, &v4, v6.as_ref());
                if done.send((batch, refused)).is_err() {
                    return;
                }
            }
        };
        std::thread::Builder::new().name("snmp-sender".to_owned()).spawn(work)?;
        Ok(Helper { full, sent, spare: (0..BATCHES).map(|_| Batch::default()).collect() })
    }

    /// Gives the thread a full batch and takes an empty one for it; `false` when it has enough to do.
    pub(super) fn take_over(&mut self, batch: &mut Batch) -> bool {
        let Some(spare) = self.spare.pop() else { return false };
        match self.full.try_send(std::mem::replace(batch, spare)) {
            Ok(()) => true,
            Err(refused) => {
                let (TrySendError::Full(back) | TrySendError::Disconnected(back)) = refused;
                self.spare.push(std::mem::replace(batch, back));
                false
            }
        }
    }

    /// Takes back what was sent, and hands over whom it did not go to.
    pub(super) fn collect(&mut self, mut refused: impl FnMut(SocketAddr, bool)) {
        loop {
            match self.sent.try_recv() {
                Ok((batch, peers)) => {
                    self.spare.push(batch);
                    peers.into_iter().for_each(|(peer, full)| refused(peer, full));
                }
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => return,
            }
        }
    }
}

/// Sends all of a batch, waiting where the kernel has no room.
fn drain(batch: &mut Batch, v4: &socket2::Socket, v6: Option<&socket2::Socket>) -> Vec<(SocketAddr, bool)> {
    let mut refused = Vec::new();
    loop {
        let of = |peer: SocketAddr| if peer.is_ipv4() { Some(v4) } else { v6 };
        let blocked = batch.send_by(
            |peer, packets| match of(peer) {
                Some(socket) => send_some(socket, packets),
                None => Err(io::ErrorKind::AddrNotAvailable.into()),
            },
            |peer, full| refused.push((peer, full)),
        );
        if blocked.is_none() {
            return refused;
        }
        std::thread::sleep(PAUSE);
    }
}
