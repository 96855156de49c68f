//! Listens on random ports.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use rand::seq::SliceRandom;
use tokio::net::{TcpListener, UdpSocket};

use crate::config::Ports;

/// Why the server cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// All ports of the range are in use.
    #[error("all {protocol} ports from {low} to {high} on {ip} are in use")]
    Exhausted { protocol: &'static str, low: u16, high: u16, ip: IpAddr },
    /// Binding failed for another reason than a port in use.
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
    // Try each port once, in random order. Many servers start on a node at the same time, and should not all try the
    // same port first. A free port is found even if the range is almost full, after at most 65,535 attempts.
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
    async fn a_range_without_a_free_port_is_reported_as_exhausted() {
        let occupied = udp(LOCAL, Ports::Any).await.unwrap();
        let port = occupied.local_addr().unwrap().port();
        let error = udp(LOCAL, Ports::Range(port, port)).await.unwrap_err();
        assert!(matches!(error, Error::Exhausted { .. }), "{error}");
        let occupied = tcp(LOCAL, Ports::Any).await.unwrap();
        let port = occupied.local_addr().unwrap().port();
        let error = tcp(LOCAL, Ports::Range(port, port)).await.unwrap_err();
        assert!(matches!(error, Error::Exhausted { .. }), "{error}");
    }

    #[tokio::test]
    async fn a_port_in_the_range_is_chosen() {
        // Other programs may use some of these 501 ports, but not all.
        let range = Ports::Range(20_000, 20_500);
        let port = tcp(LOCAL, range).await.unwrap().local_addr().unwrap().port();
        assert!((20_000..=20_500).contains(&port));
    }

    #[tokio::test]
    async fn an_address_of_another_host_is_a_bind_error() {
        let error = tcp("192.0.2.1".parse().unwrap(), Ports::Range(20_000, 20_500)).await.unwrap_err();
        assert!(matches!(error, Error::Bind { .. }), "{error}");
    }
}
