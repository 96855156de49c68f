//! Every message may come again at any time.

use garage_events::jetstream::setup::{self, CONSUMERS};
use garage_stack::workers::Worker;

use crate::support::{
    Garage, Setup,
    history::{self, assert_told, paid},
    play,
};

/// Makes every durable consumer anew, so that everything that the streams hold is delivered again.
pub(crate) async fn redeliver(garage: &Garage) {
    let jetstream = garage.jetstream();
    for consumer in CONSUMERS {
        jetstream.delete_consumer_from_stream(consumer.name, consumer.stream).await.unwrap();
        setup::make(&jetstream, consumer).await.unwrap();
    }
}

/// How many game servers the director has started.
fn started(garage: &mut Garage) -> usize {
    let logs = garage.stack.instances(Worker::Director).map(|one| std::fs::read_to_string(one.process.log()).unwrap());
    logs.map(|log| log.matches("\"instance started\"").count()).sum()
}

#[tokio::test]
async fn each_event_that_is_delivered_again_has_one_effect() {
    let mut garage = Setup::short().start().await;
    let bots = garage.bots("player", 8);

    let faults = async {
        for (type_name, count) in [("Matched", 1), ("PodRequested", 2), ("Opened", 1), ("Opened", 4), ("Closed", 1)] {
            garage.until_event(type_name, count).await;
            redeliver(&garage).await;
        }
    };
    let (played, ()) = tokio::join!(play(&bots), faults);

    let events = garage.settled().await;
    for (bot, played) in bots.iter().zip(&played) {
        assert_told(&events, &bot.player, &played.frames);
        assert_eq!(paid(&events, &bot.player).len(), 1);
    }
    assert_eq!(history::sessions(&events).len(), 4);
    for once in ["PodRequested", "PodScheduled", "PodReady", "Opened", "Finished", "Closed"] {
        assert_eq!(history::count(&events, once), 4, "{once}");
    }
    assert_eq!(started(&mut garage), 4);

    // And once more, when all is over.
    redeliver(&garage).await;
    let again = garage.settled().await;
    assert_eq!(again, events);
    assert_eq!(started(&mut garage), 4);
    for (bot, played) in bots.iter().zip(&played) {
        assert_eq!(bot.balance().await.unwrap(), 1_000 + played.earned);
    }
}
