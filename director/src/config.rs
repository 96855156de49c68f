//! The director's configuration: flags and environment variables.

use std::{fmt, net::IpAddr, path::PathBuf, str::FromStr};

use garage_events::{game::Secret, id::Region};
use garage_worker::config;

use crate::kube::node;

/// Starts, monitors and removes game server instances.
#[derive(Debug, Clone, clap::Parser)]
#[command(name = "garage-director", version)]
pub struct Config {
    #[command(flatten)]
    #[expect(missing_docs, reason = "a flattened group is documented by its fields")]
    pub worker: config::Worker,

    #[command(flatten)]
    #[expect(missing_docs, reason = "a flattened group is documented by its fields")]
    pub redis: config::Redis,

    /// File with the key that seals private keys: 32 bytes in base64. The session worker uses the same key.
    #[arg(long, env = "GARAGE_SEAL_KEY_FILE")]
    pub seal_key_file: PathBuf,

    /// File with a second seal key, which is accepted too during a key rotation: the next key, or the previous one.
    #[arg(long, env = "GARAGE_SEAL_KEY_ALSO_FILE")]
    pub seal_key_also_file: Option<PathBuf>,

    /// File with the Ed25519 public key that game servers use to verify connection tokens: SubjectPublicKeyInfo in PEM.
    // Not GARAGE_TOKEN_KEY_FILE, which names the private key of the session worker: both workers may share an
    // environment file.
    #[arg(long, env = "GARAGE_TOKEN_PUBLIC_KEY_FILE")]
    pub token_key_file: PathBuf,

    /// File with a second public key, which game servers accept too during a key rotation.
    #[arg(long, env = "GARAGE_TOKEN_PUBLIC_KEY_ALSO_FILE")]
    pub token_key_also_file: Option<PathBuf>,

    /// URLs of the NATS servers that game servers report to, separated by commas. Defaults to the director's own.
    #[arg(long, env = "GARAGE_GAME_NATS_URL", value_parser = config::unchecked, hide_env_values = true)]
    pub game_nats_url: Option<Secret>,

    /// Age in seconds at which the director removes an orphan. An orphan is an instance that no open session needs.
    #[arg(long, env = "GARAGE_ORPHAN_GRACE_S", default_value_t = 60, value_name = "SECONDS")]
    pub orphan_grace: u32,

    /// Where game servers run: as processes of this machine, or as pods of a Kubernetes cluster.
    #[arg(long, env = "GARAGE_BACKEND", default_value = "process")]
    pub backend: Kind,

    #[command(flatten)]
    #[expect(missing_docs, reason = "a flattened group is documented by its fields")]
    pub process: Process,

    #[command(flatten)]
    #[expect(missing_docs, reason = "a flattened group is documented by its fields")]
    pub kube: Kube,
}

/// Where game servers run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// Processes of this machine.
    Process,
    /// Pods of a Kubernetes cluster.
    Kube,
}

/// The settings of the Kubernetes backend.
#[derive(Debug, Clone, clap::Args)]
pub struct Kube {
    /// The kubeconfig file for the cluster. Without it, the director uses the cluster that it runs in as a pod.
    #[arg(long, env = "GARAGE_KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,

    /// The namespace for game servers. Defaults to the namespace of the kubeconfig, or of the director's pod.
    #[arg(long, env = "GARAGE_NAMESPACE", value_name = "NAME")]
    pub namespace: Option<String>,

    /// The game server's image. Required with `--backend kube`.
    #[arg(long, env = "GARAGE_IMAGE", required_if_eq("backend", "kube"))]
    pub image: Option<String>,

    /// When a node pulls the image.
    #[arg(long, env = "GARAGE_PULL_POLICY", default_value = "IfNotPresent", value_name = "POLICY")]
    pub pull_policy: PullPolicy,

    /// File with a pod in YAML, the template for game servers' pods. Garage takes from it every field that it does not
    /// set itself: resources, priority class, tolerations, labels and so on. Name its container `gameserver`. If the
    /// template sets `resources`, they replace Garage's default requests and limits as a whole.
    #[arg(long, env = "GARAGE_POD_TEMPLATE", value_name = "FILE")]
    pub pod_template: Option<PathBuf>,

    /// Where to find a node's public address. Give one or more of `external-ip`, `internal-ip`, `annotation:NAME` and
    /// `label:NAME`, separated by commas; the director uses the first one that the node has. In a label, write an IPv6
    /// address with hyphens instead of colons.
    #[arg(
        long,
        env = "GARAGE_NODE_ADDRESS",
        default_value = "external-ip",
        value_name = "SOURCES",
        value_delimiter = ','
    )]
    pub node_address: Vec<node::Source>,

    /// Seconds that a pod may wait for a node with enough room before its attempt fails. Keep it below
    /// `--ready-s` of the session worker.
    #[arg(long = "pod-patience", env = "GARAGE_POD_PATIENCE_S", default_value_t = 45, value_name = "SECONDS")]
    pub pod_max_wait: u32,

    /// The nodes of a region of the queues. `eu=topology.kubernetes.io/region=europe-west1` means the nodes with this
    /// label. `us@virginia` means another cluster, by its context in the kubeconfig. `us@virginia=zone=b` means nodes
    /// of that cluster with this label. `eu` alone means any node. Repeat the flag, or separate regions with commas.
    /// Without this flag, every region is the whole cluster.
    #[arg(long, env = "GARAGE_REGION", value_name = "REGION[@CONTEXT][=LABEL=VALUE]", value_delimiter = ',')]
    pub region: Vec<RegionSelector>,

    /// The queues file. With it, the director refuses to start if a queue has a region that no `--region` defines.
    /// Without any `--region` there is nothing to check.
    #[arg(long, env = "GARAGE_QUEUES", value_name = "FILE")]
    pub queues: Option<PathBuf>,
}

/// When a node pulls an image: the values of Kubernetes' `imagePullPolicy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "PascalCase")]
pub enum PullPolicy {
    /// For each pod.
    Always,
    /// When the node has no image of that name.
    IfNotPresent,
    /// Never. The image must be on the node already.
    Never,
}

impl fmt::Display for PullPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// A region, and the cluster and nodes that it stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegionSelector {
    /// The region as the queues name it.
    pub region: Region,
    /// The kubeconfig context of the region's cluster. `None` means the current context.
    pub context: Option<String>,
    /// Name and value of the label that the region's nodes have. `None` means any node.
    pub label: Option<(String, String)>,
}

impl FromStr for RegionSelector {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = "expected REGION, optionally followed by @CONTEXT and by =LABEL=VALUE";
        let (place, label) = match text.split_once('=') {
            None => (text, None),
            Some((place, label)) => match label.split_once('=') {
                Some((label, value)) if !label.is_empty() => (place, Some((label.to_owned(), value.to_owned()))),
                _ => return Err(expected.into()),
            },
        };
        let (region, context) = match place.split_once('@') {
            None => (place, None),
            Some((_, "")) => return Err(expected.into()),
            Some((region, context)) => (region, Some(context.to_owned())),
        };
        let region = region.parse::<Region>().map_err(|error| format!("{region}: {error}"))?;
        Ok(Self { region, context, label })
    }
}

/// The settings of the process backend. The Kubernetes backend uses `game_ports` and `game_arg` too.
#[derive(Debug, Clone, clap::Args)]
pub struct Process {
    /// The game server's program. Defaults to `garage-gameserver` in the folder of the director's program.
    #[arg(long, env = "GARAGE_GAMESERVER", value_name = "PATH")]
    pub gameserver: Option<PathBuf>,

    /// The folder for instances. It is created if it does not exist. Only directors of the same log may share it.
    /// Required with `--backend process`.
    #[arg(long, env = "GARAGE_INSTANCES", value_name = "DIR", required_unless_present = "image")]
    pub instances: Option<PathBuf>,

    /// The address by which clients reach this machine.
    #[arg(long, env = "GARAGE_PUBLIC_IP", default_value = "127.0.0.1", value_name = "IP")]
    pub public_ip: IpAddr,

    /// The range of ports that game servers listen on, both ends included. Defaults to any free ports.
    #[arg(long, env = "GARAGE_GAME_PORTS", value_name = "LO-HI")]
    pub game_ports: Option<Ports>,

    /// This machine's name in the log. Defaults to its host name.
    #[arg(long, env = "GARAGE_NODE", value_name = "NAME")]
    pub node: Option<String>,

    /// An additional argument for every game server. Repeat the flag, or separate arguments with spaces.
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
            // Each game server uses two ports, so the range must hold at least two.
            Some((low, high)) if low < high => Ok(Self { low, high }),
            _ => Err("expected LO-HI with 1 <= LO < HI <= 65535".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    const REQUIRED: [&str; 7] =
        ["garage-director", "--seal-key-file", "s", "--token-key-file", "t", "--instances", "i"];

    #[test]
    fn required_flags_are_sufficient() {
        let config = Config::parse_from(REQUIRED);
        assert_eq!(config.orphan_grace, 60);
        assert_eq!(config.process.public_ip.to_string(), "127.0.0.1");
        assert!(config.process.game_arg.is_empty());
    }

    #[test]
    fn game_arguments_may_look_like_flags() {
        let config =
            Config::parse_from(REQUIRED.into_iter().chain(["--game-arg", "--distance-m 50", "--game-arg", "-v"]));
        assert_eq!(config.process.game_arg, ["--distance-m", "50", "-v"]);
    }

    #[test]
    fn a_region_selects_nodes_by_label_or_another_cluster_or_both() {
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
                RegionSelector { region: "eu".parse().unwrap(), context: context.map(Into::into), label: selector };
            assert_eq!(text.parse(), Ok(expected));
        }
        for bad in ["", "eu=", "eu=zone", "eu==b", "eu@", "@far", "eu@=a=b"] {
            assert!(bad.parse::<RegionSelector>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn ports_parse_as_a_range() {
        assert_eq!("7000-7100".parse::<Ports>().unwrap().to_string(), "7000-7100");
        for bad in ["", "7000", "7100-7000", "0-5", "1-70000", "7000-7000"] {
            assert!(bad.parse::<Ports>().is_err(), "{bad:?}");
        }
    }
}
