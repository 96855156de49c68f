//! The gateway's configuration.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use clap::{Args, Parser};
use garage_events::{game::Secret, queue::Queues, rate::RateLimit};
use garage_worker::{
    config::{self, Worker},
    redis::Redis,
};
use ipnet::IpNet;
use tokio_rustls::TlsAcceptor;

use crate::{
    connections::Limits,
    cors::Origin,
    token::{Keys, Rules},
};

/// Serves game clients: REST and WebSocket.
#[derive(Debug, Clone, Parser)]
#[command(name = "garage-gateway", version)]
pub struct Config {
    #[command(flatten)]
    #[expect(missing_docs, reason = "a flattened group is documented by its fields")]
    pub worker: Worker,

    // Only /ops reads Redis. Players are served without it.
    #[command(flatten)]
    #[expect(missing_docs, reason = "a flattened group is documented by its fields")]
    pub redis: config::Redis,

    /// Address for game clients. Port 0 selects a free port and logs it.
    #[arg(long, env = "GARAGE_GATEWAY_LISTEN", default_value = "127.0.0.1:8080", value_name = "IP:PORT")]
    pub listen: SocketAddr,

    /// File that describes the queues. The matchmaker reads the same file.
    #[arg(long, env = "GARAGE_QUEUES", value_name = "FILE")]
    pub queues: PathBuf,

    #[command(flatten)]
    #[expect(missing_docs, reason = "a flattened group is documented by its fields")]
    pub tokens: Tokens,

    #[command(flatten)]
    #[expect(missing_docs, reason = "a flattened group is documented by its fields")]
    pub tls: Tls,

    /// Seconds that a queued player has to reconnect after their socket drops. Then their ticket is cancelled.
    #[arg(long, env = "GARAGE_GATEWAY_GRACE_S", default_value_t = 15, value_name = "SECONDS",
        value_parser = clap::value_parser!(u32).range(1..=600))]
    pub grace: u32,

    /// Seconds before a player can queue again who did not join their last two matches, although each had results. The
    /// time doubles with each further match that they do not join. 0 turns it off.
    #[arg(long, env = "GARAGE_ABSENCE_WAIT_S", default_value_t = 60, value_name = "SECONDS",
        value_parser = clap::value_parser!(u32).range(0..=86_400))]
    pub absence_wait: u32,

    /// Seconds before a player can queue again who did not accept a proposed match. The time doubles with each further
    /// match in a row that they do not accept or join. 0 turns it off.
    #[arg(long, env = "GARAGE_DECLINE_WAIT_S", default_value_t = 30, value_name = "SECONDS",
        value_parser = clap::value_parser!(u32).range(0..=86_400))]
    pub decline_wait: u32,

    /// The longest of these times, in seconds.
    #[arg(long, env = "GARAGE_ABSENCE_WAIT_MAX_S", default_value_t = 3_600, value_name = "SECONDS",
        value_parser = clap::value_parser!(u32).range(0..=86_400))]
    pub absence_wait_max: u32,

    /// Maximum number of open connections, including sockets. For a further connection, the gateway closes the oldest
    /// one that has not sent a valid token.
    // A socket without TLS takes 8 KiB of memory (measured with 4,000 sockets). 20,000 sockets take 160 MiB, and 20,000
    // file descriptors.
    #[arg(long, env = "GARAGE_GATEWAY_MAX_CONNECTIONS", default_value_t = 20_000, value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub max_connections: u32,

    /// Maximum number of open connections of one IP address (with IPv6, of one /64 network) that have not sent a valid
    /// token.
    // A client sends a token with its first request. 64 new connections at a time are enough for the players behind one
    // address, such as a school.
    #[arg(long, env = "GARAGE_GATEWAY_MAX_UNAUTHENTICATED_PER_ADDRESS", default_value_t = 64, value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub max_unauthenticated_per_address: u32,

    /// Maximum number of open connections of one player, including the socket.
    // A browser opens at most six connections to one host. Another client needs one for each command in progress, of which
    // 33 can run or wait.
    #[arg(long, env = "GARAGE_GATEWAY_MAX_CONNECTIONS_PER_PLAYER", default_value_t = 64, value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub max_connections_per_player: u32,

    /// How the proxies in front of the gateway name the client's address: proxy-protocol or forwarded. Without this
    /// setting, the address of a connection is taken as the client's.
    #[arg(long, env = "GARAGE_GATEWAY_PROXY_HEADER", value_name = "HEADER", requires = "trusted_proxies")]
    pub proxy_header: Option<ProxyHeader>,

    /// Addresses or networks of the proxies in front of the gateway, separated by commas, such as 10.0.0.0/8. The
    /// gateway does not accept the header of `--proxy-header` from other addresses.
    #[arg(long, env = "GARAGE_GATEWAY_TRUSTED_PROXIES", value_name = "CIDR", value_delimiter = ',',
        value_parser = network, requires = "proxy_header")]
    pub trusted_proxies: Vec<IpNet>,

    /// Origins of the web pages that may call the gateway (CORS), separated by commas: scheme and host, without a path.
    #[arg(long, env = "GARAGE_GATEWAY_CORS_ORIGINS", value_name = "ORIGIN", value_delimiter = ',')]
    pub cors_origins: Vec<Origin>,

    #[command(flatten)]
    #[expect(missing_docs, reason = "a flattened group is documented by its fields")]
    pub rate_limits: RateLimits,
}

/// How a proxy names the client's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ProxyHeader {
    /// With a header at the beginning of each connection: the PROXY protocol, version 1 or 2.
    ProxyProtocol,
    /// With the header `Forwarded` of each request (RFC 7239).
    Forwarded,
}

/// Reads a network, or a single address.
fn network(text: &str) -> Result<IpNet, String> {
    let address = text.parse::<IpAddr>().ok().map(IpNet::from);
    let network = address.or_else(|| text.parse().ok());
    network.ok_or_else(|| "use an address or a network, such as 10.0.0.7 or 10.0.0.0/8".into())
}

impl Config {
    /// Checks the settings and reads the files, without connecting to anything.
    ///
    /// # Errors
    /// Any error in the configuration that would stop the worker at its start.
    pub fn check(&self) -> anyhow::Result<()> {
        self.read()?;
        self.worker.check()
    }

    /// Reads the files that the settings name, and makes the Redis client without connecting it.
    pub(crate) fn read(&self) -> anyhow::Result<(Keys, Queues, Option<TlsAcceptor>, Redis)> {
        let keys = Keys::load(&self.tokens)?;
        Ok((keys, Queues::load(&self.queues)?, self.tls.acceptor()?, Redis::new(&self.redis)?))
    }

    pub(crate) fn limits(&self) -> anyhow::Result<Limits> {
        let total = self.max_connections.try_into()?;
        let per_address = self.max_unauthenticated_per_address.try_into()?;
        Ok(Limits { total, per_address, per_player: self.max_connections_per_player.try_into()? })
    }
}

/// How often one account may send each kind of request. Every gateway process counts for itself.
///
/// Normal clients stay far below the defaults: a player queues, cancels or buys a few times per minute, and a client
/// that polls does so once per second. A backend queues the groups of all players.
#[derive(Debug, Clone, Args)]
pub struct RateLimits {
    /// Rate limit for creating and cancelling tickets, for each player. 40/1 means 40 at once, and then one per second.
    /// `off` means no limit.
    #[arg(long, env = "GARAGE_GATEWAY_LIMIT_TICKETS", default_value = "40/1", value_name = "BURST/PER_SECOND")]
    pub limit_tickets: RateLimit,

    /// Rate limit for commands on cars and items, for each player, as in `--limit-tickets`.
    #[arg(long, env = "GARAGE_GATEWAY_LIMIT_GARAGE", default_value = "40/2", value_name = "BURST/PER_SECOND")]
    pub limit_garage: RateLimit,

    /// Rate limit for requests that change nothing (`GET`), for each player, as in `--limit-tickets`.
    #[arg(long, env = "GARAGE_GATEWAY_LIMIT_READS", default_value = "200/50", value_name = "BURST/PER_SECOND")]
    pub limit_reads: RateLimit,

    /// Rate limit for opening WebSockets, for each player, as in `--limit-tickets`.
    #[arg(long, env = "GARAGE_GATEWAY_LIMIT_SOCKETS", default_value = "40/2", value_name = "BURST/PER_SECOND")]
    pub limit_sockets: RateLimit,

    /// Rate limit for creating connection tokens, for each player, as in `--limit-tickets`.
    #[arg(long, env = "GARAGE_GATEWAY_LIMIT_CONNECT_TOKENS", default_value = "40/1", value_name = "BURST/PER_SECOND")]
    pub limit_connect_tokens: RateLimit,

    /// Rate limit for queueing groups, for each backend (the `sub` of its token), as in `--limit-tickets`.
    #[arg(long, env = "GARAGE_GATEWAY_LIMIT_GROUPS", default_value = "1000/100", value_name = "BURST/PER_SECOND")]
    pub limit_groups: RateLimit,

    /// Rate limit for commands on parties, apart from joins, for each player, as in `--limit-tickets`.
    #[arg(long, env = "GARAGE_GATEWAY_LIMIT_PARTIES", default_value = "30/0.2", value_name = "BURST/PER_SECOND")]
    pub limit_parties: RateLimit,

    /// Rate limit for joining parties, for each player, as in `--limit-tickets`. A join code has 50 random bits, so that
    /// nobody finds one by guessing at this rate.
    #[arg(
        long,
        env = "GARAGE_GATEWAY_LIMIT_PARTY_JOINS",
        default_value = "10/0.1667",
        value_name = "BURST/PER_SECOND"
    )]
    pub limit_party_joins: RateLimit,
}

/// Whose keys sign players' tokens, and what the tokens must contain. At least one source of keys is required: a JWKS,
/// a file with public keys, or a file with a shared key.
#[derive(Debug, Clone, Args)]
pub struct Tokens {
    /// URL of the identity provider's public keys (JWKS). The gateway reads them every 10 minutes. https://, or http://
    /// on this machine.
    #[arg(long, env = "GARAGE_GATEWAY_JWKS_URL", value_name = "URL", value_parser = config::unchecked,
        hide_env_values = true)]
    pub jwks_url: Option<Secret>,

    /// File with the public keys of the identity provider in PEM, for a provider without a JWKS.
    #[arg(long, env = "GARAGE_GATEWAY_JWT_PUBLIC_KEY_FILE", value_name = "FILE")]
    pub jwt_public_key_file: Option<PathBuf>,

    /// File with the key that signs players' tokens with HS256: a text of at least 32 bytes. For local use, or for an
    /// identity provider that shares its key.
    #[arg(long, env = "GARAGE_GATEWAY_JWT_KEY_FILE", value_name = "FILE")]
    pub jwt_key_file: Option<PathBuf>,

    /// File with a second such key, which is accepted too during a key rotation: the next key, or the previous one.
    #[arg(long, env = "GARAGE_GATEWAY_JWT_KEY_ALSO_FILE", value_name = "FILE")]
    pub jwt_key_also_file: Option<PathBuf>,

    /// The value that the claim iss of a token must have. Without this setting, any issuer is accepted.
    #[arg(long, env = "GARAGE_GATEWAY_JWT_ISSUER", value_name = "TEXT",
        value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub jwt_issuer: Option<String>,

    /// Accepted audiences, separated by commas. The claim aud of a token must contain at least one of them. Without
    /// this setting, any audience is accepted.
    #[arg(long, env = "GARAGE_GATEWAY_JWT_AUDIENCE", value_name = "TEXT", value_delimiter = ',',
        value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub jwt_audience: Vec<String>,

    /// Tolerated difference between the clocks of the gateway and the identity provider, in seconds.
    #[arg(long, env = "GARAGE_GATEWAY_JWT_LEEWAY_S", default_value_t = 5, value_name = "SECONDS",
        value_parser = clap::value_parser!(u32).range(0..=300))]
    pub jwt_leeway: u32,

    /// The claim that names the player. A name that begins with / is a path inside a claim: /game/account is the field
    /// account of the claim game.
    #[arg(long, env = "GARAGE_GATEWAY_JWT_PLAYER_CLAIM", default_value = "sub", value_name = "CLAIM",
        value_parser = claim_name)]
    pub jwt_player_claim: String,

    /// The claim with the player's rank. A name that begins with / is a path, as in `--jwt-player-claim`.
    #[arg(long, env = "GARAGE_GATEWAY_JWT_RANK_CLAIM", default_value = "rank", value_name = "CLAIM",
        value_parser = claim_name)]
    pub jwt_rank_claim: String,
}

impl Tokens {
    pub(crate) fn rules(&self) -> Rules {
        Rules {
            issuer: self.jwt_issuer.clone(),
            audiences: self.jwt_audience.clone(),
            leeway: Duration::from_secs(self.jwt_leeway.into()),
            player_claim: self.jwt_player_claim.clone(),
            rank_claim: self.jwt_rank_claim.clone(),
        }
    }
}

/// Parses the name of a claim. If this claim is wrong in a token, a header of the answer contains the name in quotes.
/// So the name has only characters that are allowed there.
fn claim_name(text: &str) -> Result<String, String> {
    let fits =
        (1..=128).contains(&text.len()) && text.bytes().all(|b| matches!(b, b' '..=b'~') && b != b'"' && b != b'\\');
    if fits { Ok(text.to_owned()) } else { Err("use 1 to 128 ASCII characters, without \" and \\".into()) }
}

/// The certificate for game clients. Without one, the gateway serves plain HTTP, for local use or behind a proxy that
/// terminates TLS.
#[derive(Debug, Clone, Default, Args)]
pub struct Tls {
    /// File with the certificate for game clients and its chain, in PEM. Without one, the gateway serves plain HTTP.
    #[arg(long, env = "GARAGE_GATEWAY_TLS_CERT", requires = "tls_key", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,

    /// File with the certificate's private key, in PEM.
    #[arg(long, env = "GARAGE_GATEWAY_TLS_KEY", requires = "tls_cert", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_needs_its_key_and_a_key_its_certificate() {
        let args = ["garage-gateway", "--queues", "q", "--jwt-key-file", "k"];
        let parse = |more: &[&str]| Config::try_parse_from(args.iter().chain(more));
        assert!(parse(&[]).unwrap().tls.tls_cert.is_none());
        assert!(parse(&["--tls-cert", "c"]).is_err());
        assert!(parse(&["--tls-key", "k"]).is_err());
        assert!(parse(&["--tls-key", "k", "--tls-cert", "c"]).is_ok());
        assert!(parse(&["--max-connections", "0"]).is_err());
    }

    #[test]
    fn every_rate_limit_is_checked_before_the_gateway_connects() {
        let args = ["garage-gateway", "--queues", "q", "--jwt-key-file", "k"];
        let parse = |flag: &str, value: &str| Config::try_parse_from(args.iter().chain([&flag, &value]));
        for class in ["tickets", "garage", "reads", "sockets", "connect-tokens", "groups", "parties", "party-joins"] {
            let flag = format!("--limit-{class}");
            assert!(parse(&flag, "3/0.5").is_ok() && parse(&flag, "off").is_ok(), "{flag}");
            let error = parse(&flag, "many").unwrap_err().to_string();
            assert!(error.contains("\"many\" is not a rate limit"), "{error}");
        }
    }

    #[test]
    fn a_proxy_header_needs_the_proxies_and_proxies_need_their_header() {
        let parse = |more: &[&str]| {
            let args = ["garage-gateway", "--queues", "q", "--jwt-key-file", "k"];
            Config::try_parse_from(args.iter().chain(more)).map(|config| config.trusted_proxies)
        };
        assert!(parse(&["--proxy-header", "forwarded"]).is_err());
        assert!(parse(&["--trusted-proxies", "10.0.0.0/8"]).is_err());
        assert!(parse(&["--proxy-header", "x-forwarded-for", "--trusted-proxies", "10.0.0.0/8"]).is_err());
        let parsed = parse(&["--proxy-header", "proxy-protocol", "--trusted-proxies", "10.0.0.7,fd00::/8"]).unwrap();
        assert_eq!(parsed, ["10.0.0.7/32".parse().unwrap(), "fd00::/8".parse().unwrap()]);
        for bad in ["10.0.0.0/33", "proxy.example", "10.0.0.0/8,", ""] {
            assert!(parse(&["--proxy-header", "forwarded", "--trusted-proxies", bad]).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_settings_of_tokens_are_checked() {
        let parse = |more: &[&str]| Config::try_parse_from(["garage-gateway", "--queues", "q"].iter().chain(more));
        let error = Keys::load(&parse(&[]).unwrap().tokens).unwrap_err().to_string();
        for cure in ["--jwks-url", "--jwt-public-key-file", "--jwt-key-file"] {
            assert!(error.contains(cure), "{error}");
        }
        let url = |url: &str| Keys::load(&parse(&["--jwks-url", url]).unwrap().tokens);
        for good in ["https://id.example/jwks?p=1", "http://localhost:1/", "http://127.0.0.9/", "http://[::1]:80/jwks"]
        {
            assert!(url(good).is_ok(), "{good}");
        }
        for bad in [
            "http://id.example/jwks",
            "http://10.0.0.7/jwks",
            "http://localhost.example/",
            "ftp://id.example/",
            "id",
            "",
            "https://",
            "/jwks",
        ] {
            assert!(format!("{:#}", url(bad).unwrap_err()).contains("https://"), "{bad}");
        }
        let secret = format!("{:#}", url("https://ann:hunter2@id.example/jwks").unwrap_err());
        assert!(secret.contains("--jwks-url") && !secret.contains("hunter2"), "{secret}");

        let rules = parse(&["--jwt-audience", "game,beta"]).unwrap().tokens.rules();
        assert_eq!(rules.audiences, ["game", "beta"]);
        assert!(parse(&["--jwt-leeway", "300"]).is_ok() && parse(&["--jwt-rank-claim", "https://a/rank"]).is_ok());
        for bad in [
            ["--jwt-leeway", "301"],
            ["--jwt-issuer", ""],
            ["--jwt-audience", "game,"],
            ["--jwt-player-claim", ""],
            ["--jwt-rank-claim", "a\"b"],
        ] {
            assert!(parse(&bad).is_err(), "{bad:?}");
        }
    }
}
