//! Where a node listens, what others dial, and what it is called.

use std::net::{IpAddr, SocketAddr};

use tokio::net::TcpListener;

use super::membership::{check_address, check_name};
use super::{OpenError, Start};

/// Where nodes listen unless told otherwise.
const PORT: u16 = 7440;

/// The addresses of a start: where to listen, and what others dial.
pub(crate) struct Place {
    pub(crate) listener: TcpListener,
    pub(crate) listen: SocketAddr,
    pub(crate) advertise: String,
}

impl Place {
    /// Binds, and works out what to tell others.
    pub(crate) async fn take(
        listen: Option<SocketAddr>,
        advertise: Option<String>,
    ) -> Result<Self, OpenError> {
        let asked = listen.unwrap_or(SocketAddr::from(([0, 0, 0, 0], PORT)));
        let refused = |reason| OpenError::Listen { address: asked, reason };
        let listener = TcpListener::bind(asked).await.map_err(refused)?;
        let bound = listener.local_addr().map_err(refused)?;
        let advertise = match advertise {
            Some(advertise) => advertise,
            None if !bound.ip().is_unspecified() => bound.to_string(),
            None if listen.is_some() => {
                return Err(OpenError::Address(format!(
                    "--listen {asked} is every address of this host: say with --advertise HOST:PORT which one other nodes reach"
                )));
            }
            None => own_address(bound.port())?,
        };
        check_address(&advertise).map_err(|why| OpenError::Address(format!("--advertise {why}")))?;
        Ok(Place { listener, listen: bound, advertise })
    }
}

/// The address this host uses towards others; asks the routing table, sends nothing.
fn own_address(port: u16) -> Result<String, OpenError> {
    let route = std::net::UdpSocket::bind("0.0.0.0:0").and_then(|socket| {
        // TEST-NET-1 (RFC 5737): connecting a UDP socket only picks a route.
        socket.connect("192.0.2.1:9")?;
        socket.local_addr()
    });
    match route.map(|address| address.ip()) {
        Ok(ip @ IpAddr::V4(_)) if !ip.is_unspecified() => Ok(SocketAddr::new(ip, port).to_string()),
        _ => Err(OpenError::Address(
            "this host has no address that other nodes would reach: say it with --advertise HOST:PORT".into(),
        )),
    }
}

fn own_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let short = host.trim().split('.').next().unwrap_or_default();
    if check_name("the name", short).is_ok() { short.to_owned() } else { "node".to_owned() }
}

/// The node's name and zone, checked.
pub(crate) fn labels(start: &Start) -> Result<(String, String), OpenError> {
    let name = start.name.clone().unwrap_or_else(own_name);
    let zone = start.zone.clone().unwrap_or_else(|| "default".to_owned());
    check_name("--name", &name).map_err(OpenError::Address)?;
    check_name("--zone", &zone).map_err(OpenError::Address)?;
    Ok((name, zone))
}
