//! Reserves free ports for servers that need a fixed port.
//!
//! The ports are below the range that the kernel uses for outgoing connections. Inside that range, a client that keeps
//! reconnecting to a dead server would sooner or later get the server's own port as its source port. The client would
//! then be connected to itself, and the server could never bind its port again. Another program may still take a port
//! before the server binds it, so servers start again with other ports after [`Error::PortTaken`].

use std::{
    collections::HashSet,
    net::{Ipv4Addr, TcpListener},
    ops::Range,
    sync::{LazyLock, Mutex, PoisonError},
};

use crate::{Error, Result};

/// How often a server is started before [`Error::PortTaken`] is returned.
pub(crate) const STARTS: usize = 3;

/// All ports that this process has reserved. None is reserved twice, as a server that is restarting still needs its
/// port.
static RESERVED: LazyLock<Mutex<HashSet<u16>>> = LazyLock::new(Mutex::default);

/// Reserves `N` different ports that are free on 127.0.0.1 now.
///
/// # Errors
/// When no free port is found.
pub fn reserve<const N: usize>() -> Result<[u16; N]> {
    let range = range();
    let mut reserved = RESERVED.lock().unwrap_or_else(PoisonError::into_inner);
    let mut ports = [0; N];
    for port in &mut ports {
        *port = free(&range, &mut reserved)?;
    }
    Ok(ports)
}

fn free(range: &Range<u16>, reserved: &mut HashSet<u16>) -> Result<u16> {
    let mut last = None;
    for _ in 0..1000 {
        let candidate = if range.is_empty() { 0 } else { rand::random_range(range.clone()) };
        if reserved.contains(&candidate) {
            continue;
        }
        match TcpListener::bind((Ipv4Addr::LOCALHOST, candidate)).and_then(|listener| listener.local_addr()) {
            Ok(address) if reserved.insert(address.port()) => return Ok(address.port()),
            Ok(_) => {}
            Err(error) => last = Some(error),
        }
    }
    Err(Error::io("find a free port on 127.0.0.1")(last.unwrap_or_else(|| std::io::ErrorKind::AddrInUse.into())))
}

/// From 10240, above the usual ports of services, to the first port for outgoing connections. If the machine uses
/// nearly all ports for outgoing connections, the range is empty and the kernel chooses a port.
fn range() -> Range<u16> {
    const FIRST: u16 = 10_240;
    let outgoing = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok();
    let end = outgoing.and_then(|text| text.split_whitespace().next()?.parse().ok()).unwrap_or(32_768);
    if end < FIRST + 1000 { 0..0 } else { FIRST..end }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_port_is_reserved_twice() {
        let mut seen = HashSet::new();
        for _ in 0..50 {
            for port in reserve::<4>().unwrap() {
                assert!(seen.insert(port), "{port} twice");
            }
        }
    }
}
