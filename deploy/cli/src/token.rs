//! `garage token`: issues a player's token, in place of an identity provider.

use std::{path::PathBuf, time::Duration};

use garage_events::player::RANKS;
use garage_gateway::{
    sign_token,
    token::{GROUPS, Key, sign_service_token},
};

use crate::report::say;

/// Prints a player's token, as your identity provider would issue it.
#[derive(Debug, clap::Args)]
pub(crate) struct Token {
    /// The player's name, which becomes the `sub` of the token.
    player: String,
    /// The rank that the player queues with. Without it, the player is matched by their rating.
    #[arg(long, allow_negative_numbers = true,
        value_parser = clap::value_parser!(i32).range(i64::from(*RANKS.start())..=i64::from(*RANKS.end())))]
    rank: Option<i32>,
    /// A scope of the token. `matchmaking:groups` lets the studio's own backend queue groups of players; its token has no rank.
    #[arg(long, value_parser = [GROUPS], conflicts_with = "rank")]
    scope: Option<String>,
    /// The file with the HS256 key of the gateway.
    #[arg(long, env = "GARAGE_GATEWAY_JWT_KEY_FILE")]
    jwt_key_file: PathBuf,
    /// How many seconds the token is valid.
    #[arg(long, default_value_t = 3_600)]
    valid_s: u32,
}

impl Token {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let key = Key::load(&self.jwt_key_file)?;
        let valid = Duration::from_secs(self.valid_s.into());
        let token = match &self.scope {
            Some(scope) => sign_service_token(&key, &self.player, scope, valid),
            None => sign_token(&key, &self.player, self.rank, valid),
        }?;
        say(token.expose());
        Ok(())
    }
}
