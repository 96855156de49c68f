//! The answer to `GET /v1/regions`: where clients measure their latency, and how often.

use garage_events::{
    id::Region,
    queue::{MeasuredAt, Queues},
};
use serde::Serialize;

/// The path that answers measurements of the gateway itself.
const PING: &str = "/v1/ping";

/// How often a client measures again while its player may queue, in milliseconds. Latencies change when the player moves
/// to another network, which takes minutes, and each measurement costs a few requests.
const MEASURE_EVERY_MS: u32 = 300_000;

/// All regions. `regions` repeats the names, for clients that were written before the other fields existed.
#[derive(Debug, PartialEq, Serialize)]
pub(crate) struct RegionList<'a> {
    regions: Vec<&'a Region>,
    endpoints: Vec<Endpoint<'a>>,
    measure_every_ms: u32,
}

/// Where a client measures the latency to a region.
#[derive(Debug, PartialEq, Serialize)]
struct Endpoint<'a> {
    region: &'a Region,
    /// An absolute URL, or a path of the gateway.
    url: &'a str,
    /// What a client sends as the latency if it cannot measure.
    default_latency_ms: u32,
}

impl<'a> RegionList<'a> {
    pub(crate) fn of(queues: &'a Queues) -> Self {
        let regions: Vec<_> = queues.regions().into_iter().collect();
        let endpoint = |region: &&'a Region| {
            let url = queues.measured_at.get(*region).map_or(PING, |MeasuredAt { measure_url }| measure_url);
            Some(Endpoint { region, url, default_latency_ms: queues.default_latency(region)? })
        };
        let endpoints = regions.iter().filter_map(endpoint).collect();
        Self { regions, endpoints, measure_every_ms: MEASURE_EVERY_MS }
    }
}
