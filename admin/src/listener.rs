//! The link's TCP listener: accepts, does the TLS handshake, hands the connection to tonic.
//!
//! Looks at nothing that a caller says; who it is, is decided where a call arrives.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::{Connected, TcpConnectInfo, TlsConnectInfo};

/// One connection a site and a few of people who enrol; each costs about 50 KiB, so 100 MiB at the bound,
/// where further callers wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 2048;
/// Finished handshakes that tonic has not taken yet: it takes them at once, so this never fills.
const READY_MAX: usize = 64;
/// A handshake takes two round trips; whoever needs longer is not a node.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// After a failed accept (no file descriptors left): long enough not to spin, short enough not to matter.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Accepts until `stop`.
pub(crate) fn incoming(
    listener: TcpListener,
    config: Arc<ServerConfig>,
    stop: CancellationToken,
) -> ReceiverStream<io::Result<Connection>> {
    let (ready, stream) = mpsc::channel(READY_MAX);
    tokio::spawn(async move {
        let _ = stop.run_until_cancelled(accept(listener, config, ready)).await;
    });
    ReceiverStream::new(stream)
}

async fn accept(
    listener: TcpListener,
    config: Arc<ServerConfig>,
    ready: mpsc::Sender<io::Result<Connection>>,
) {
    let acceptor = TlsAcceptor::from(config);
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        match listener.accept().await {
            Ok((tcp, _)) => {
                tokio::spawn(shake_hands(acceptor.clone(), tcp, place, ready.clone()));
            }
            Err(error) => {
                tracing::warn!(%error, "accept a link connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn shake_hands(
    acceptor: TlsAcceptor,
    tcp: TcpStream,
    place: OwnedSemaphorePermit,
    ready: mpsc::Sender<io::Result<Connection>>,
) {
    let peer = tcp.peer_addr().ok();
    if let Err(error) = tcp.set_nodelay(true) {
        tracing::debug!(%error, "set TCP_NODELAY");
    }
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(tcp)).await {
        Ok(Ok(stream)) => {
            // Fails only when the server is stopping.
            let _ = ready.send(Ok(Connection { stream, _place: place })).await;
        }
        Ok(Err(error)) => tracing::debug!(?peer, %error, "TLS handshake failed"),
        Err(_) => tracing::debug!(?peer, "TLS handshake timed out"),
    }
}

/// A TLS connection that holds its place among [`CONNECTIONS_MAX`] until it closes.
pub(crate) struct Connection {
    stream: TlsStream<TcpStream>,
    _place: OwnedSemaphorePermit,
}

impl Connected for Connection {
    type ConnectInfo = TlsConnectInfo<TcpConnectInfo>;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, octets: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, octets)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
