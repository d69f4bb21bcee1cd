//! Tells the cluster what this node has that another one may lack: people see it in `members`, and nodes
//! without Chromium hand pages to those that have it.

use std::time::Duration;

use quire_coordinator::rows;
use quire_proto::store::command::Kind;
use quire_proto::store::{Capabilities, UpdateMember};
use tokio_util::sync::CancellationToken;

use crate::cluster::Cluster;
use crate::device::browser::Browser;

/// Chromium, for pages that need JavaScript.
pub(super) const CHROMIUM: &str = "chromium";

/// How often the node's own row is compared with what is installed.
const EVERY: Duration = Duration::from_secs(30);
const PATIENCE: Duration = Duration::from_secs(10);

/// Keeps the node's row true until it is told to stop.
pub(super) async fn keep(cluster: Cluster, stop: CancellationToken) {
    loop {
        let row = rows::member(&cluster.view(), cluster.me().id).ok().flatten();
        if let Some(row) = row {
            let names = known(Browser::found());
            if row.capabilities != names {
                let capabilities = Some(Capabilities { names });
                let update =
                    Kind::UpdateMember(UpdateMember { id: row.id, capabilities, ..UpdateMember::default() });
                if let Err(error) = cluster.propose(update, PATIENCE).await {
                    tracing::debug!(%error, "what this node has is not committed; it is said again");
                }
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(EVERY) => {}
        }
    }
}

fn known(browser: bool) -> Vec<String> {
    browser.then(|| CHROMIUM.to_owned()).into_iter().collect()
}
