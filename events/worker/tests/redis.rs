//! The connection to Redis recovers from every kind of loss.
#![cfg(test)]

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use garage_stack::servers;
use garage_worker::{config, redis::Redis};
use redis::RedisResult;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

const DEADLINE: Duration = Duration::from_secs(120);

fn connection(url: &str, password: &Path) -> Redis {
    let redis_url = config::unchecked(url).unwrap();
    Redis::new(&config::Redis { redis_url, redis_password_file: Some(password.to_owned()) }).unwrap()
}

async fn ping(redis: &Redis) -> RedisResult<()> {
    let mut connection = redis.connection().await?;
    redis.checked(redis::cmd("PING").exec_async(&mut connection).await).await
}

async fn recovers(redis: &Redis) {
    let recovers = async { while ping(redis).await.is_err() {} };
    timeout(DEADLINE, recovers).await.unwrap();
}

#[tokio::test]
async fn a_changed_password_is_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let server = servers::Redis::start(folder.path()).await.unwrap();
    let password = folder.path().join("password");
    fs::copy(server.password_file(), &password).unwrap();
    let redis = connection(&server.url(), &password);
    ping(&redis).await.unwrap();

    let admin = redis::Client::open(server.url_with_password()).unwrap();
    let mut admin = admin.get_multiplexed_async_connection().await.unwrap();
    redis::cmd("CONFIG").arg(&["SET", "requirepass", "another"]).exec_async(&mut admin).await.unwrap();
    redis::cmd("CLIENT").arg(&["KILL", "TYPE", "normal", "SKIPME", "yes"]).exec_async(&mut admin).await.unwrap();
    // The first ping may fail because of the killed connection, the second because of the password.
    let _ = ping(&redis).await;
    ping(&redis).await.unwrap_err();
    fs::write(&password, "another").unwrap();
    recovers(&redis).await;
}

/// Forwards connections to the target. While `swallow` is set, the first connection discards what the client sends.
async fn forwarder(target: SocketAddr, swallow: Arc<AtomicBool>, accepted: Arc<AtomicU32>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            // Only the first connection is affected. A later one works.
            let swallow = (accepted.fetch_add(1, Ordering::SeqCst) == 0).then(|| Arc::clone(&swallow));
            tokio::spawn(async move {
                let mut far = TcpStream::connect(target).await.unwrap();
                let (mut up, mut down) = ([0; 4096], [0; 4096]);
                loop {
                    tokio::select! {
                        Ok(count @ 1..) = near.read(&mut up) => {
                            if !swallow.as_ref().is_some_and(|swallow| swallow.load(Ordering::SeqCst)) {
                                far.write_all(&up[..count]).await.unwrap();
                            }
                        }
                        Ok(count @ 1..) = far.read(&mut down) => near.write_all(&down[..count]).await.unwrap(),
                        else => break,
                    }
                }
            });
        }
    });
    address
}

#[tokio::test]
async fn a_silently_dropped_connection_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let server = servers::Redis::start(folder.path()).await.unwrap();
    let target = server.url().trim_start_matches("redis://").trim_end_matches('/').parse().unwrap();
    let (swallow, accepted) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    let address = forwarder(target, Arc::clone(&swallow), Arc::clone(&accepted)).await;
    let redis = connection(&format!("redis://{address}"), server.password_file());
    ping(&redis).await.unwrap();
    swallow.store(true, Ordering::SeqCst);
    ping(&redis).await.unwrap_err();
    recovers(&redis).await;
    assert_eq!(accepted.load(Ordering::SeqCst), 2);
}
