//! Listening on random ports.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use rand::seq::SliceRandom;
use tokio::net::{TcpListener, UdpSocket};

use crate::config::Ports;

/// Why there is no port.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Every port of the range is taken.
    #[error("every {protocol} port from {low} to {high} is taken on {ip}")]
    Exhausted { protocol: &'static str, low: u16, high: u16, ip: IpAddr },
    /// The system refuses for another reason than the port being taken.
    #[error("listening on {protocol} {address}")]
    Bind {
        protocol: &'static str,
        address: SocketAddr,
        #[source]
        cause: io::Error,
    },
}

/// Listens for connections on a port of the range.
pub(crate) async fn tcp(ip: IpAddr, ports: Ports) -> Result<TcpListener, Error> {
    bind("TCP", ip, ports, TcpListener::bind).await
}

/// Listens for datagrams on a port of the range.
pub(crate) async fn udp(ip: IpAddr, ports: Ports) -> Result<UdpSocket, Error> {
    bind("UDP", ip, ports, UdpSocket::bind).await
}

async fn bind<S>(
    protocol: &'static str,
    ip: IpAddr,
    ports: Ports,
    bind: impl AsyncFn(SocketAddr) -> io::Result<S>,
) -> Result<S, Error> {
    let (low, high) = match ports {
        Ports::Any => (0, 0),
        Ports::Range(low, high) => (low, high),
    };
    // Each port once, in random order: many servers start on a node at the same time and must not all try the first,
    // and a nearly full range is still searched to its end, in at most 65,535 attempts.
    let mut order: Vec<u16> = (low..=high).collect();
    order.shuffle(&mut rand::rng());
    for port in order {
        let address = SocketAddr::new(ip, port);
        match bind(address).await {
            Ok(socket) => return Ok(socket),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && port != 0 => {}
            Err(cause) => return Err(Error::Bind { protocol, address, cause }),
        }
    }
    Err(Error::Exhausted { protocol, low, high, ip })
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    #[tokio::test]
    async fn a_taken_range_is_said_so() {
        let holder = udp(LOCAL, Ports::Any).await.unwrap();
        let port = holder.local_addr().unwrap().port();
        let error = udp(LOCAL, Ports::Range(port, port)).await.unwrap_err();
        assert!(matches!(error, Error::Exhausted { .. }), "{error}");
        let holder = tcp(LOCAL, Ports::Any).await.unwrap();
        let port = holder.local_addr().unwrap().port();
        let error = tcp(LOCAL, Ports::Range(port, port)).await.unwrap_err();
        assert!(matches!(error, Error::Exhausted { .. }), "{error}");
    }

    #[tokio::test]
    async fn a_port_of_the_range_is_found_beside_taken_ones() {
        // The neighbours of a free port may be anybody's; a range of some hundred has a free one.
        let range = Ports::Range(20_000, 20_500);
        let one = tcp(LOCAL, range).await.unwrap().local_addr().unwrap().port();
        assert!((20_000..=20_500).contains(&one));
    }

    #[tokio::test]
    async fn an_address_of_another_host_is_no_matter_of_ports() {
        let error = tcp("192.0.2.1".parse().unwrap(), Ports::Range(20_000, 20_500)).await.unwrap_err();
        assert!(matches!(error, Error::Bind { .. }), "{error}");
    }
}
