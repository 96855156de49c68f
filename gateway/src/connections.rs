//! Limits for open connections: in total, of one address without a valid token, and of one player.
//!
//! A connection counts for its address until its first request with a valid token. From then on it counts for the
//! player of that token. When the gateway is full, the oldest connection without a valid token is closed for a new one.
//! If all connections have one, the new connection is closed at once. It does not wait in the kernel's accept queue:
//! there, a client cannot distinguish a full gateway from a slow one, and a load balancer does not try another gateway.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    future::pending,
    hash::Hash,
    net::{IpAddr, Ipv6Addr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use garage_events::id::PlayerId;
use tokio::{sync::oneshot, time::Instant};

use crate::{
    problem::Problem,
    token::{self, Identity},
};

/// The gateway warns about an address with most of the connections only if these are at least this many. A developer or
/// a test has fewer.
const MANY: usize = 100;

/// The interval of that warning.
const WARNING_INTERVAL: Duration = Duration::from_secs(3_600);

/// The limits for connections. Each is at least 1.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// All connections of this gateway.
    pub(crate) total: usize,
    /// Connections of one address without a valid token.
    pub(crate) per_address: usize,
    /// Connections of one player.
    pub(crate) per_player: usize,
}

/// Why a connection or a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Its address has too many connections without a valid token.
    Address,
    /// All connections of the gateway have a valid token.
    Full,
    /// The player has too many connections.
    Player,
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        Self::too_many_connections(match refusal {
            Refusal::Address => "this address has too many requests without a valid token in progress",
            Refusal::Full => "the gateway has too many connections",
            Refusal::Player => "the player has too many connections; close some, or use one for several requests",
        })
    }
}

/// Counts a refused connection. `proxy` means that a proxy did not name the client.
pub(crate) fn refused(reason: &'static str) {
    metrics::counter!("garage_gateway_connections_refused_total", "reason" => reason).increment(1);
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A change under this lock is complete before anything can panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Counts connections and requests by key, up to a limit for each key.
#[derive(Debug)]
struct Counter<K> {
    limit: usize,
    counts: Arc<Mutex<HashMap<K, usize>>>,
}

/// A connection or request that a [`Counter`] counts. Dropping it decreases the count.
#[derive(Debug)]
struct Counted<K: Eq + Hash> {
    key: K,
    counts: Arc<Mutex<HashMap<K, usize>>>,
}

impl<K: Clone + Eq + Hash> Counter<K> {
    fn new(limit: usize) -> Self {
        Self { limit, counts: Arc::default() }
    }

    /// Counts one more for this key, and also returns the new count; `None` if the limit is reached.
    fn add(&self, key: K) -> Option<(Counted<K>, usize)> {
        let mut counts = lock(&self.counts);
        let count = counts.entry(key.clone()).or_default();
        if *count >= self.limit {
            return None;
        }
        *count += 1;
        Some((Counted { key, counts: Arc::clone(&self.counts) }, *count))
    }
}

impl<K: Eq + Hash> Drop for Counted<K> {
    fn drop(&mut self) {
        let mut counts = lock(&self.counts);
        if let Some(count) = counts.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.key);
            }
        }
    }
}

/// The open connections of this gateway, up to a limit.
#[derive(Debug)]
struct Slots {
    limit: usize,
    /// The limit for connections of one address without a valid token.
    per_address: usize,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    /// All connections, without those that were asked to end.
    count: usize,
    next_id: u64,
    /// The connections without a valid token, the oldest first.
    unauthenticated: BTreeMap<u64, Unauthenticated>,
    /// The addresses of these connections, as far as they are known.
    by_address: BTreeSet<(IpAddr, u64)>,
}

/// A connection without a valid token.
#[derive(Debug)]
struct Unauthenticated {
    address: Option<IpAddr>,
    /// Asks the connection to end.
    end: oneshot::Sender<()>,
}

/// The slot of one connection. Dropping it frees the slot.
#[derive(Debug)]
struct Slot {
    id: u64,
    slots: Arc<Slots>,
    authenticated: AtomicBool,
}

/// Signals to a connection that it must end, because a newer connection needs its slot.
#[derive(Debug)]
pub(crate) struct Eviction(oneshot::Receiver<()>);

impl Eviction {
    /// Returns when the connection must end; never, once the connection has a valid token.
    pub(crate) async fn wait(self) {
        // The sender is dropped when the connection is authenticated.
        if self.0.await.is_err() {
            pending::<()>().await;
        }
    }
}

impl Open {
    fn remove(&mut self, id: u64) -> Option<Unauthenticated> {
        let removed = self.unauthenticated.remove(&id)?;
        if let Some(address) = removed.address {
            self.by_address.remove(&(address, id));
        }
        Some(removed)
    }

    fn evict(&mut self, id: u64, reason: &'static str) {
        if let Some(evicted) = self.remove(id) {
            self.count -= 1;
            // The connection may have ended already.
            let _ = evicted.end.send(());
            refused(reason);
        }
    }

    /// Ends the oldest connection of this address if it has `limit` of them.
    fn make_room(&mut self, address: IpAddr, limit: usize) {
        let mut of_address = self.by_address.range((address, 0)..=(address, u64::MAX));
        if let Some((_, oldest)) = of_address.next().copied()
            && 1 + of_address.count() >= limit
        {
            self.evict(oldest, "address");
        }
    }
}

impl Slots {
    /// Takes a slot, if necessary from the oldest connection without a valid token, of the same address or of any. Also
    /// returns the number of open connections.
    fn take(self: &Arc<Self>, address: Option<IpAddr>) -> Option<(Slot, Eviction, usize)> {
        let mut open = lock(&self.open);
        if let Some(address) = address {
            open.make_room(address, self.per_address);
        }
        if open.count >= self.limit {
            let oldest = *open.unauthenticated.first_key_value()?.0;
            open.evict(oldest, "full");
        }
        let id = open.next_id;
        let (end, ended) = oneshot::channel();
        open.count += 1;
        open.next_id += 1;
        open.unauthenticated.insert(id, Unauthenticated { address, end });
        open.by_address.extend(address.map(|address| (address, id)));
        Some((Slot { id, slots: Arc::clone(self), authenticated: AtomicBool::new(false) }, Eviction(ended), open.count))
    }
}

impl Slot {
    /// Sets the address of a connection without a valid token.
    fn locate(&self, address: IpAddr) {
        let mut open = lock(&self.slots.open);
        open.make_room(address, self.slots.per_address);
        if let Some(connection) = open.unauthenticated.get_mut(&self.id) {
            connection.address = Some(address);
            open.by_address.insert((address, self.id));
        }
    }

    /// From now on, the connection is not closed for a newer one, unless it was already asked to end.
    fn keep(&self) {
        if lock(&self.slots.open).remove(self.id).is_some() {
            self.authenticated.store(true, Ordering::Relaxed);
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut open = lock(&self.slots.open);
        if self.authenticated.load(Ordering::Relaxed) || open.remove(self.id).is_some() {
            open.count -= 1;
        }
    }
}

/// Counts the connections of a gateway. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Connections(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    slots: Arc<Slots>,
    /// Forwarded requests in progress without a valid token.
    addresses: Counter<IpAddr>,
    players: Counter<PlayerId>,
    /// All connections of each address; `None` if the gateway knows its proxies.
    sharing: Option<Sharing>,
}

/// Notices a proxy that is not configured: most connections have its address.
#[derive(Debug)]
struct Sharing {
    all: Counter<IpAddr>,
    warned: Mutex<Option<Instant>>,
}

/// A connection, or a request that a proxy forwards, and for whom it counts. When this is dropped, it no longer counts.
#[derive(Debug)]
pub(crate) struct Claim {
    connections: Connections,
    /// `None` for a request.
    slot: Option<Slot>,
    counted: Mutex<CountedFor>,
    /// Counts the connection among all connections of its address.
    _sharing: Option<Counted<IpAddr>>,
}

#[derive(Debug)]
enum CountedFor {
    /// A connection without a valid token, which its slot counts; or a request whose client is not known yet.
    Nobody,
    Address(#[expect(dead_code, reason = "only its drop matters")] Counted<IpAddr>),
    Player(#[expect(dead_code, reason = "only its drop matters")] Counted<PlayerId>),
    /// The studio's own backend.
    Backend,
}

impl Connections {
    /// `proxies` says whether the gateway knows the proxies in front of it.
    pub(crate) fn new(limits: Limits, proxies: bool) -> Self {
        let Limits { total: limit, per_address, .. } = limits;
        let slots = Arc::new(Slots { limit, per_address, open: Mutex::default() });
        let sharing = (!proxies).then(|| Sharing { all: Counter::new(usize::MAX), warned: Mutex::default() });
        let (addresses, players) = (Counter::new(limits.per_address), Counter::new(limits.per_player));
        Self(Arc::new(Inner { slots, addresses, players, sharing }))
    }

    /// Counts a new connection. If a proxy will name the client's `address`, it is `None`: then call [`Claim::locate`]
    /// later.
    pub(crate) fn open(&self, address: Option<IpAddr>, now: Instant) -> Result<(Claim, Eviction), Refusal> {
        let taken = self.0.slots.take(address.map(network));
        let (slot, eviction, open) = taken.ok_or(Refusal::Full).inspect_err(|_| refused("full"))?;
        let sharing = address.and_then(|address| self.count_sharing(address, open, now));
        let (connections, counted) = (self.clone(), Mutex::new(CountedFor::Nobody));
        Ok((Claim { connections, slot: Some(slot), counted, _sharing: sharing }, eviction))
    }

    /// A request that a proxy forwards. Its connection belongs to the proxy and can carry requests of many players.
    pub(crate) fn request(&self) -> Claim {
        Claim { connections: self.clone(), slot: None, counted: Mutex::new(CountedFor::Nobody), _sharing: None }
    }

    /// Warns if more than half of `open` connections have this address.
    fn count_sharing(&self, address: IpAddr, open: usize, now: Instant) -> Option<Counted<IpAddr>> {
        let sharing = self.0.sharing.as_ref()?;
        let (counted, count) = sharing.all.add(network(address))?;
        let mut warned = lock(&sharing.warned);
        let recently = warned.is_some_and(|at| now.saturating_duration_since(at) < WARNING_INTERVAL);
        if count >= MANY && count > open / 2 && !recently {
            *warned = Some(now);
            tracing::warn!(
                %address,
                connections = count,
                open,
                "most connections come from one address; if it is a proxy or load balancer, set --proxy-header and \
                 --trusted-proxies, because all of its clients share the limit for one address"
            );
        }
        Some(counted)
    }
}

impl Claim {
    /// Counts a connection or request without a valid token for its client's address. A request is refused at the limit.
    pub(crate) fn locate(&self, address: IpAddr) -> Result<(), Refusal> {
        let address = network(address);
        if let Some(slot) = &self.slot {
            slot.locate(address);
            return Ok(());
        }
        let counted = self.connections.0.addresses.add(address);
        let (counted, _) = counted.ok_or(Refusal::Address).inspect_err(|_| refused("address"))?;
        *lock(&self.counted) = CountedFor::Address(counted);
        Ok(())
    }

    /// Whether it has had a valid token.
    pub(crate) fn is_authenticated(&self) -> bool {
        matches!(*lock(&self.counted), CountedFor::Player(_) | CountedFor::Backend)
    }

    /// Counts it for the player of its first valid token, and no longer for its address. A token of the studio's
    /// backend has no limit: its connections carry the requests of many players.
    pub(crate) fn authenticate(&self, identity: &Identity) -> Result<(), Refusal> {
        let counted = if identity.has_scope(token::GROUPS) {
            CountedFor::Backend
        } else {
            let counted = self.connections.0.players.add(identity.player.clone());
            CountedFor::Player(counted.ok_or(Refusal::Player).inspect_err(|_| refused("player"))?.0)
        };
        self.keep();
        *lock(&self.counted) = counted;
        Ok(())
    }

    /// From now on, the connection is not closed for a newer one.
    pub(crate) fn keep(&self) {
        if let Some(slot) = &self.slot {
            slot.keep();
        }
    }
}

/// What counts as one address. A client with IPv6 usually has a whole /64 network, and can use any address in it.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)).into(),
        address => address,
    }
}

#[cfg(test)]
mod tests;
