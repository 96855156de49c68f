//! The results: tables and figures.

use super::{Options, limit::Limit, steady::Steady};
use crate::{
    bench::{
        matching::figures::Figures,
        sample::{median, spread},
    },
    report::{say, table},
};

/// The results of repeated measurements.
#[derive(Debug, Default)]
pub(super) struct Repeated {
    /// Matched players per second of each burst.
    pub(super) bursts: Vec<f64>,
    pub(super) steady: Vec<Steady>,
}

impl Repeated {
    fn latencies(&self, of: fn(&Steady) -> f64) -> Vec<f64> {
        self.steady.iter().map(of).collect()
    }
}

/// All results with one number of NATS nodes.
#[derive(Debug)]
pub(super) struct Results {
    pub(super) nodes: u8,
    pub(super) limit: Limit,
    /// A matchmaker without standing tickets.
    pub(super) path: Repeated,
    /// By the number of standing tickets.
    pub(super) standing: Vec<(u32, Repeated)>,
}

impl Results {
    pub(super) fn print(&self, options: &Options) {
        let Self { nodes, limit: Limit { results: bare, burst_way, steady_way }, path, standing } = self;
        let named = [("the writer alone (limit)".into(), bare), ("a matchmaker".into(), path)];
        let standing = standing.iter().map(|(count, of)| (format!("a matchmaker, {count} standing tickets"), of));
        let named: Vec<(String, &Repeated)> = named.into_iter().chain(standing).collect();

        say(format!("\n{nodes} NATS node(s), every write synced; median (lowest..highest) of {} runs", options.runs));
        say(format!(
            "{} pairs that are queued at once; the writer alone: {burst_way}; target: a share of 0.70 or more",
            options.pairs
        ));
        let row = |(name, of): &(String, &Repeated)| {
            let share = median(&of.bursts) / median(&bare.bursts);
            vec![name.clone(), spread(&of.bursts, 0), format!("{share:.2}")]
        };
        let rows: Vec<_> = named.iter().filter(|(_, of)| !of.bursts.is_empty()).map(row).collect();
        table(&["", "players per second", "share of the writer alone"], &rows);

        say(format!(
            "\n{} pairs per second for {} s: from both tickets in the log until the match is received; the writer alone: \
             {steady_way}; targets: at most 3 times the writer alone, and with standing tickets at most 1.5 times the p99 without",
            options.rate, options.seconds
        ));
        let row = |(name, of): &(String, &Repeated)| {
            let latencies = |of: &Repeated| [of.latencies(Steady::p50), of.latencies(Steady::p99)];
            let ratio = |one: &[f64], other: &[f64]| format!("{:.1}", median(one) / median(other));
            let [[p50, p99], [p50_limit, p99_limit]] = [of, bare].map(latencies);
            let [p50_ratio, p99_ratio] = [ratio(&p50, &p50_limit), ratio(&p99, &p99_limit)];
            let without = ratio(&p99, &path.latencies(Steady::p99));
            let late = spread(&of.latencies(Steady::late_p99), 1);
            vec![name.clone(), spread(&p50, 2), p50_ratio, spread(&p99, 2), p99_ratio, without, late]
        };
        let rows: Vec<_> = named.iter().map(row).collect();
        table(&["", "p50 ms", "/ alone", "p99 ms", "/ alone", "/ without standing", "load late, p99 ms"], &rows);
        let late = named.iter().flat_map(|(name, of)| of.steady.iter().filter_map(move |one| one.behind(name)));
        late.for_each(say);
    }

    pub(super) fn record(&self, figures: &mut Figures) {
        let Self { nodes, limit: Limit { results: bare, .. }, path, standing } = self;
        let prefix = if *nodes == 1 { "path".to_owned() } else { format!("path{nodes}") };
        let mut set = |name: String, values: &[f64]| figures.set(format!("{prefix}.{name}"), median(values));
        set("log_limit_players_per_s".into(), &bare.bursts);
        set("bare_p50_ms".into(), &bare.latencies(Steady::p50));
        set("bare_p99_ms".into(), &bare.latencies(Steady::p99));
        let without = [(String::new(), path)].into_iter();
        for (suffix, of) in without.chain(standing.iter().map(|(count, of)| (format!("_standing_{count}"), of))) {
            set(format!("players_per_s{suffix}"), &of.bursts);
            set(format!("p50_ms{suffix}"), &of.latencies(Steady::p50));
            set(format!("p99_ms{suffix}"), &of.latencies(Steady::p99));
        }
    }
}
