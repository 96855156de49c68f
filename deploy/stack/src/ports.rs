//! Free ports for servers that must be told one.
//!
//! The ports come from below the range that the kernel hands out for outgoing connections. Inside it a client that
//! keeps reconnecting to a dead server is given, sooner or later, the server's own port as its source: it connects to
//! itself, and the server can never bind its port again. Between the choice and the server's bind a stranger may still
//! take the port, so servers start again with other ports on [`Error::PortTaken`].

use std::{
    collections::HashSet,
    net::{Ipv4Addr, TcpListener},
    ops::Range,
    sync::{LazyLock, Mutex, PoisonError},
};

use crate::{Error, Result};

/// How often a server is started before its ports being taken is reported.
pub(crate) const STARTS: usize = 3;

/// Ports given out by this process. They are not given out again: a server that is down for a moment still owns its own.
static GIVEN: LazyLock<Mutex<HashSet<u16>>> = LazyLock::new(Mutex::default);

/// `N` different ports that are free on 127.0.0.1 now.
///
/// # Errors
/// When no free port is found.
pub fn reserve<const N: usize>() -> Result<[u16; N]> {
    let range = range();
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut ports = [0; N];
    for port in &mut ports {
        *port = free(&range, &mut given)?;
    }
    Ok(ports)
}

fn free(range: &Range<u16>, given: &mut HashSet<u16>) -> Result<u16> {
    let mut last = None;
    for _ in 0..1000 {
        let candidate = if range.is_empty() { 0 } else { rand::random_range(range.clone()) };
        if given.contains(&candidate) {
            continue;
        }
        match TcpListener::bind((Ipv4Addr::LOCALHOST, candidate)).and_then(|listener| listener.local_addr()) {
            Ok(address) if given.insert(address.port()) => return Ok(address.port()),
            Ok(_) => {}
            Err(error) => last = Some(error),
        }
    }
    Err(Error::io("find a free port on 127.0.0.1")(last.unwrap_or_else(|| std::io::ErrorKind::AddrInUse.into())))
}

/// From 10240, above what services usually take, to the first port for outgoing connections. Empty, which leaves the
/// choice to the kernel, where the machine is set up to use nearly all ports for those.
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
    fn ports_are_given_once() {
        let mut seen = HashSet::new();
        for _ in 0..50 {
            for port in reserve::<4>().unwrap() {
                assert!(seen.insert(port), "{port} twice");
            }
        }
    }
}
