//! What the director is told.

use std::{fmt, net::IpAddr, path::PathBuf, str::FromStr};

use garage_events::{game::Secret, id::Region};
use garage_worker::config;

use crate::kube::node;

/// Director: owns game server instances; starts, finds again, and removes them.
#[derive(Debug, Clone, clap::Parser)]
#[command(name = "garage-director", version)]
pub struct Config {
    #[command(flatten)]
    #[expect(missing_docs, reason = "a flattened group is documented by its fields")]
    pub worker: config::Worker,

    #[command(flatten)]
    #[expect(missing_docs, reason = "a flattened group is documented by its fields")]
    pub redis: config::Redis,

    /// A file with the key that private keys are sealed with: 32 bytes in base64. Session has the same.
    #[arg(long, env = "GARAGE_SEAL_KEY_FILE")]
    pub seal_key_file: PathBuf,

    /// A file with another such key, accepted besides while keys are rotated: the next one, or the former one.
    #[arg(long, env = "GARAGE_SEAL_KEY_ALSO_FILE")]
    pub seal_key_also_file: Option<PathBuf>,

    /// A file with the Ed25519 public key that game servers verify connection tokens with, SubjectPublicKeyInfo PEM.
    // Not GARAGE_TOKEN_KEY_FILE, which is session's private half: one environment file may serve both.
    #[arg(long, env = "GARAGE_TOKEN_PUBLIC_KEY_FILE")]
    pub token_key_file: PathBuf,

    /// A file with another such key, which game servers accept besides while keys are rotated.
    #[arg(long, env = "GARAGE_TOKEN_PUBLIC_KEY_ALSO_FILE")]
    pub token_key_also_file: Option<PathBuf>,

    /// URLs of the NATS servers that game servers report to, separated by commas; by default those of the director.
    #[arg(long, env = "GARAGE_GAME_NATS_URL", value_parser = config::unchecked, hide_env_values = true)]
    pub game_nats_url: Option<Secret>,

    /// Seconds from the match to the session's hard end, which game servers are told. As session's.
    #[arg(long, env = "GARAGE_SESSION_S", default_value_t = 900, value_parser = clap::value_parser!(u32).range(10..=7200))]
    pub session_s: u32,

    /// Seconds until an instance that no open session asks for counts as an orphan and is removed.
    #[arg(long, env = "GARAGE_ORPHAN_GRACE_S", default_value_t = 60, value_name = "SECONDS")]
    pub orphan_grace: u32,

    /// What runs game servers: processes of this machine, or a Kubernetes cluster.
    #[arg(long, env = "GARAGE_BACKEND", default_value = "process")]
    pub backend: Kind,

    #[command(flatten)]
    #[expect(missing_docs, reason = "a flattened group is documented by its fields")]
    pub process: Process,

    #[command(flatten)]
    #[expect(missing_docs, reason = "a flattened group is documented by its fields")]
    pub kube: Kube,
}

/// What runs game servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// Processes of this machine.
    Process,
    /// A Kubernetes cluster.
    Kube,
}

/// Game servers as pods of a Kubernetes cluster.
#[derive(Debug, Clone, clap::Args)]
pub struct Kube {
    /// The file that says where the cluster is and as whom to ask it; without one it is the cluster that the director
    /// is a pod of.
    #[arg(long, env = "GARAGE_KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,

    /// The namespace that game servers run in; by default that of the kubeconfig, or of the director's pod.
    #[arg(long, env = "GARAGE_NAMESPACE", value_name = "NAME")]
    pub namespace: Option<String>,

    /// The game server's image. Needed with a cluster.
    #[arg(long, env = "GARAGE_IMAGE", required_if_eq("backend", "kube"))]
    pub image: Option<String>,

    /// When a machine pulls the image.
    #[arg(long, env = "GARAGE_PULL_POLICY", default_value = "IfNotPresent", value_name = "POLICY")]
    pub pull_policy: PullPolicy,

    /// A file with a pod in YAML, of which game servers' pods have what Garage does not set itself: resources, priority
    /// class, tolerations, labels and so on. Its container is called `gameserver`.
    #[arg(long, env = "GARAGE_POD_TEMPLATE", value_name = "FILE")]
    pub pod_template: Option<PathBuf>,

    /// Where the public address of a node is looked for, in this order, separated by commas: `external-ip`,
    /// `internal-ip`, `annotation:NAME`, `label:NAME`. In a label an IPv6 address has hyphens for its colons.
    #[arg(
        long,
        env = "GARAGE_NODE_ADDRESS",
        default_value = "external-ip",
        value_name = "SOURCES",
        value_delimiter = ','
    )]
    pub node_address: Vec<node::Source>,

    /// Seconds for which a pod may fit no node before its attempt counts as failed; less than session waits for it.
    #[arg(long = "pod-patience", env = "GARAGE_POD_PATIENCE_S", default_value_t = 45, value_name = "SECONDS")]
    pub pod_max_wait: u32,

    /// A region of the queues, and where it is: a label that its nodes have, `eu=topology.kubernetes.io/region=europe-west1`,
    /// another cluster, by its context in the kubeconfig, `us@virginia`, or both, `us@virginia=zone=b`; `eu` alone is every
    /// node. May be given several times, or hold several, separated by commas. Without any, every region is the whole
    /// cluster.
    #[arg(long, env = "GARAGE_REGION", value_name = "REGION[@CONTEXT][=LABEL=VALUE]", value_delimiter = ',')]
    pub region: Vec<Selected>,

    /// The queues file. With it, a queue that is played in a region of which no `--region` says where it is keeps the
    /// director from starting.
    #[arg(long, env = "GARAGE_QUEUES", value_name = "FILE")]
    pub queues: Option<PathBuf>,
}

/// When a machine pulls an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "PascalCase")]
pub enum PullPolicy {
    /// For each pod.
    Always,
    /// When it has none of that name.
    IfNotPresent,
    /// Never: somebody else puts it there.
    Never,
}

impl fmt::Display for PullPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// A region, and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selected {
    /// The region.
    pub region: Region,
    /// The kubeconfig's context of its cluster; none for the one that it is set to.
    pub context: Option<String>,
    /// The label's name and its value; none for any node.
    pub label: Option<(String, String)>,
}

impl FromStr for Selected {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wanted = "wanted is REGION, and behind it as one likes @CONTEXT and =LABEL=VALUE";
        let (place, label) = match text.split_once('=') {
            None => (text, None),
            Some((place, label)) => match label.split_once('=') {
                Some((label, value)) if !label.is_empty() => (place, Some((label.to_owned(), value.to_owned()))),
                _ => return Err(wanted.into()),
            },
        };
        let (region, context) = match place.split_once('@') {
            None => (place, None),
            Some((_, "")) => return Err(wanted.into()),
            Some((region, context)) => (region, Some(context.to_owned())),
        };
        let region = region.parse::<Region>().map_err(|error| format!("{region}: {error}"))?;
        Ok(Self { region, context, label })
    }
}

/// Game servers as processes of this machine.
#[derive(Debug, Clone, clap::Args)]
pub struct Process {
    /// The game server's program; by default `garage-gameserver` beside the director's own.
    #[arg(long, env = "GARAGE_GAMESERVER", value_name = "PATH")]
    pub gameserver: Option<PathBuf>,

    /// The folder that instances live in; made when it is not there. It belongs to the directors of one log.
    /// Needed unless they are pods.
    #[arg(long, env = "GARAGE_INSTANCES", value_name = "DIR", required_unless_present = "image")]
    pub instances: Option<PathBuf>,

    /// How clients reach this machine.
    #[arg(long, env = "GARAGE_PUBLIC_IP", default_value = "127.0.0.1", value_name = "IP")]
    pub public_ip: IpAddr,

    /// Ports that game servers listen on, both ends included; by default whichever are free.
    #[arg(long, env = "GARAGE_GAME_PORTS", value_name = "LO-HI")]
    pub game_ports: Option<Ports>,

    /// This machine's name in the log; by default its host name.
    #[arg(long, env = "GARAGE_NODE", value_name = "NAME")]
    pub node: Option<String>,

    /// A further argument for every game server; may be given several times, or hold several, separated by spaces.
    #[arg(long, env = "GARAGE_GAME_ARG", value_name = "ARG", value_delimiter = ' ', allow_hyphen_values = true)]
    pub game_arg: Vec<String>,
}

/// A range of ports, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    low: u16,
    high: u16,
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.low, self.high)
    }
}

impl FromStr for Ports {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0);
        match text.split_once('-').and_then(|(low, high)| Some((port(low)?, port(high)?))) {
            // Each game takes two.
            Some((low, high)) if low < high => Ok(Self { low, high }),
            _ => Err("wanted is LO-HI with 1 <= LO < HI <= 65535".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    const NEEDED: [&str; 7] = ["garage-director", "--seal-key-file", "s", "--token-key-file", "t", "--instances", "i"];

    #[test]
    fn the_needed_flags_are_enough() {
        let config = Config::parse_from(NEEDED);
        assert_eq!(config.orphan_grace, 60);
        assert_eq!(config.process.public_ip.to_string(), "127.0.0.1");
        assert!(config.process.game_arg.is_empty());
    }

    #[test]
    fn further_arguments_may_look_like_flags() {
        let config =
            Config::parse_from(NEEDED.into_iter().chain(["--game-arg", "--distance-m 50", "--game-arg", "-v"]));
        assert_eq!(config.process.game_arg, ["--distance-m", "50", "-v"]);
    }

    #[test]
    fn a_region_is_nodes_with_a_label_or_another_cluster_or_both() {
        let label = |text: &str| text.split_once('=').map(|(label, value)| (label.into(), value.into()));
        for (text, context, selector) in [
            ("eu", None, None),
            (
                "eu=topology.kubernetes.io/region=europe-west1",
                None,
                label("topology.kubernetes.io/region=europe-west1"),
            ),
            ("eu@admin@far", Some("admin@far"), None),
            ("eu@far=zone=b", Some("far"), label("zone=b")),
        ] {
            let expected =
                Selected { region: "eu".parse().unwrap(), context: context.map(Into::into), label: selector };
            assert_eq!(text.parse(), Ok(expected));
        }
        for bad in ["", "eu=", "eu=zone", "eu==b", "eu@", "@far", "eu@=a=b"] {
            assert!(bad.parse::<Selected>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn ports_are_a_range() {
        assert_eq!("7000-7100".parse::<Ports>().unwrap().to_string(), "7000-7100");
        for bad in ["", "7000", "7100-7000", "0-5", "1-70000", "7000-7000"] {
            assert!(bad.parse::<Ports>().is_err(), "{bad:?}");
        }
    }
}
