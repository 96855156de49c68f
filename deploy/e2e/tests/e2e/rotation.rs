//! All keys are rotated while players play, in the order of `deploy/docs/operating.md`.

use std::pin::pin;

use futures::future::{Either, join_all, select};
use garage_stack::{bot::Bot, workers::Worker};
use reqwest::Client;

use crate::support::{DEADLINE, Garage, Setup, history, operations, play, until};

/// Variables of workers, and the key file that each variable names. `None` means that the variable is not set.
type Keys<'a> = &'a [(&'a str, Option<&'a str>)];

/// Restarts a worker's instances one after another, with other keys.
async fn roll(garage: &mut Garage, worker: Worker, keys: Keys<'_>) {
    let secrets = garage.stack.root().join("secrets");
    for instance in garage.stack.instances(worker) {
        for (variable, file) in keys {
            instance.process.set_env(variable, file.map(|file| secrets.join(file).into()));
        }
        instance.process.stop().await;
        instance.process.restart().unwrap();
        instance.wait_ready().await.unwrap();
    }
}

/// Lets bots play matches, one after another, until `change` is done. They play at least one.
async fn play_while(bots: &[Bot], change: impl Future<Output = ()>) {
    let mut change = pin!(change);
    loop {
        match select(change, pin!(play(bots))).await {
            Either::Left(((), playing)) => {
                playing.await;
                return;
            }
            Either::Right((_, unfinished)) => change = unfinished,
        }
    }
}

/// A player with a token that `garage token` signs with this key.
async fn bot_of_key(garage: &Garage, name: &str, key: &str) -> Bot {
    let key = garage.stack.root().join("secrets").join(key).display().to_string();
    let (made, token) = garage.cli(&["token", name, "--rank", "0", "--jwt-key-file", &key]).await;
    assert!(made, "{token}");
    Bot::new(Client::new(), &garage.stack.gateway(), name, token.trim()).with_max_wait(DEADLINE)
}

async fn bots_of_key(garage: &Garage, key: &str) -> Vec<Bot> {
    join_all(["anna", "bert", "carl", "dora"].map(|name| bot_of_key(garage, name, key))).await
}

fn kid(token: &str) -> String {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
    let header = URL_SAFE_NO_PAD.decode(token.split('.').next().unwrap()).unwrap();
    let header: serde_json::Value = serde_json::from_slice(&header).unwrap();
    header["kid"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn players_do_not_notice_a_rotation_of_all_keys() {
    let mut garage = Setup::short().instances(2).start().await;
    let secrets = garage.stack.root().join("secrets");
    operations::run("new-keys", &secrets, &[]).await;
    let before = bots_of_key(&garage, "jwt.key").await;

    let accept_both = async {
        let also = [
            ("GARAGE_SEAL_KEY_ALSO_FILE", Some("seal.next")),
            ("GARAGE_TOKEN_PUBLIC_KEY_ALSO_FILE", Some("token.next.pub.pem")),
        ];
        roll(&mut garage, Worker::Director, &also).await;
        roll(&mut garage, Worker::Gateway, &[("GARAGE_GATEWAY_JWT_KEY_ALSO_FILE", Some("jwt.next"))]).await;
    };
    play_while(&before, accept_both).await;
    garage.settled().await;

    let use_the_next = async {
        let next = [("GARAGE_SEAL_KEY_FILE", Some("seal.next")), ("GARAGE_TOKEN_KEY_FILE", Some("token.next.pem"))];
        roll(&mut garage, Worker::Session, &next).await;
    };
    play_while(&before, use_the_next).await;
    let after = bots_of_key(&garage, "jwt.next").await;
    // Players with the former key and with the new key play in the same matches.
    play(&[&before[..2], &after[2..]].concat()).await;
    garage.settled().await;

    let forget_the_former = async {
        let alone = [
            ("GARAGE_SEAL_KEY_FILE", Some("seal.next")),
            ("GARAGE_SEAL_KEY_ALSO_FILE", None),
            ("GARAGE_TOKEN_PUBLIC_KEY_FILE", Some("token.next.pub.pem")),
            ("GARAGE_TOKEN_PUBLIC_KEY_ALSO_FILE", None),
        ];
        roll(&mut garage, Worker::Director, &alone).await;
        let alone = [("GARAGE_GATEWAY_JWT_KEY_FILE", Some("jwt.next")), ("GARAGE_GATEWAY_JWT_KEY_ALSO_FILE", None)];
        roll(&mut garage, Worker::Gateway, &alone).await;
    };
    play_while(&after, forget_the_former).await;

    let events = garage.settled().await;
    let count = |type_name| history::count(&events, type_name);
    assert_eq!((count("PodFailed"), count("Failed")), (0, 0));
    assert_eq!(count("Finished"), count("Matched"));
    assert_eq!(count("PodRequested"), count("Matched"), "a match took more than one attempt");

    // Tokens of the former keys are now refused.
    assert_eq!(before[0].me().await.unwrap_err().status, 401);
    roll(&mut garage, Worker::Session, &[("GARAGE_TOKEN_KEY_FILE", Some("token.pem"))]).await;
    let (one, other) = tokio::join!(after[0].play("ranked"), after[1].play("ranked"));
    for refused in [one, other] {
        assert!(refused.as_ref().is_err_and(|error| error.what.contains("token is not valid")), "{refused:?}");
    }
    let former = [("GARAGE_TOKEN_KEY_FILE", Some("token.next.pem")), ("GARAGE_SEAL_KEY_FILE", Some("seal.key"))];
    roll(&mut garage, Worker::Session, &former).await;
    for bot in &after[2..] {
        bot.queue("ranked").await.unwrap();
    }
    let lost = garage
        .until_log("an attempt fails because its key cannot be unsealed", |events| {
            events.iter().find(|event| event.type_name == "PodFailed").cloned()
        })
        .await;
    assert_eq!(lost.text("reason"), "key-lost");
    assert!(lost.text("message").contains("--seal-key-also-file"), "{lost}");
}

#[tokio::test]
async fn key_ids_are_the_ones_that_openssl_computes() {
    let mut garage = Setup::long().start().await;
    let secrets = garage.stack.root().join("secrets");
    operations::run("new-keys", &secrets, &[]).await;
    let ids = operations::run("key-ids", &secrets, &[]).await;
    let (of_tokens, of_players) = ids.trim().split_once('\n').unwrap();

    let next = bot_of_key(&garage, "anna", "jwt.next").await;
    let key = secrets.join("jwt.next").display().to_string();
    assert_eq!(kid(&garage.cli(&["token", "anna", "--jwt-key-file", &key]).await.1), of_players);

    // The session worker signs with the new key, and the game server finds the key by its id.
    roll(&mut garage, Worker::Session, &[("GARAGE_TOKEN_KEY_FILE", Some("token.next.pem"))]).await;
    roll(&mut garage, Worker::Director, &[("GARAGE_TOKEN_PUBLIC_KEY_ALSO_FILE", Some("token.next.pub.pem"))]).await;
    roll(&mut garage, Worker::Gateway, &[("GARAGE_GATEWAY_JWT_KEY_ALSO_FILE", Some("jwt.next"))]).await;
    let mut event_stream = next.event_stream().await.unwrap();
    next.queue("ranked").await.unwrap();
    garage.bot("bert").queue("ranked").await.unwrap();
    let matched = event_stream.until("PlayerMatched").await.unwrap().data;
    let session = matched["session"].as_str().unwrap().to_owned();
    let (_, token) = next.admission(&session, &serde_json::from_value(matched).unwrap()).await.unwrap();
    assert_eq!(kid(&token), of_tokens);
    let config = until("the game's configuration", async || {
        let config =
            std::fs::read(garage.stack.instances_folder().join(garage.stack.games().first()?).join("config.json"));
        serde_json::from_slice::<serde_json::Value>(&config.ok()?).ok()
    })
    .await;
    assert_eq!(config["token_keys"].as_object().unwrap().len(), 2);
    assert_eq!(config["token_keys"][of_tokens], std::fs::read_to_string(secrets.join("token.next.pub.pem")).unwrap());
    assert_eq!(config["token_key"], std::fs::read_to_string(secrets.join("token.pub.pem")).unwrap());
}
