//! Pages that need JavaScript, between nodes: asked of another node where this one has no Chromium, and shown for those
//! that have none.
//!
//! Who asks goes on owning the device and its reading; the other one makes one visit to it, under the cluster's settings
//! (its ports, login, exclusions), while the owner has none. A page that was asked for here is never handed on.

use std::net::IpAddr;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use ipnet::IpNet;
use quire_coordinator::planner::NodeView;
use quire_coordinator::rows;
use quire_coordinator::tables::Fault;
use quire_proto::cluster::show_miss::Why;
use quire_proto::cluster::show_reply::Result as Came;
use quire_proto::cluster::{ShowMiss, ShowReply, ShowRequest, ShownPage};
use quire_proto::id::{ANY_ZONE, Millis, NodeId};
use quire_proto::store::UnitRow;

use super::Tools;
use super::capability::CHROMIUM;
use super::web::Pin;
use crate::cluster::{Cluster, Wanted};
use crate::device::browser::{Browser, BrowserMiss, Shown};
use crate::device::http::{Fetched, Fingerprint, WebError};
use crate::device::script::WebPath;
use crate::device::web::{Elsewhere, Handed, Learnt, Pages, RenderMiss};

/// Nodes that are asked for one page, one after the other: a second one where the first has just gone.
const ASKED: usize = 2;

/// Pages that are shown for others at the same time: as many as a browser shows, and as many that wait for it.
pub(super) const SHOWING: usize = 4;

/// The other nodes of the cluster, as far as they show pages.
#[derive(Debug)]
pub(super) struct Others(pub(super) Cluster);

impl Elsewhere for Others {
    fn show(
        &self,
        ip: IpAddr,
        path: String,
        most: usize,
        pin: Option<Fingerprint>,
    ) -> BoxFuture<'static, Option<Handed>> {
        ask(self.0.clone(), ip, path, most, pin).boxed()
    }
}

async fn ask(
    cluster: Cluster,
    ip: IpAddr,
    path: String,
    most: usize,
    pin: Option<Fingerprint>,
) -> Option<Handed> {
    let able = able(&cluster, ip).unwrap_or_else(|fault| {
        tracing::error!(%fault, "nobody can be asked for a page");
        Vec::new()
    });
    let certificate = pin.map(|pin| pin.0.to_vec()).unwrap_or_default();
    let most = u32::try_from(most).unwrap_or(u32::MAX);
    for node in able.into_iter().take(ASKED) {
        let (address, path, certificate) = (ip.to_string(), path.clone(), certificate.clone().into());
        let page = ShowRequest { envelope: None, address, path, most, certificate };
        match cluster.show(node, page).await {
            Ok(reply) => {
                metrics::counter!("quire_pages_handed_over_total").increment(1);
                return Some(received(reply));
            }
            Err(status) => tracing::debug!(%node, %status, "a node does not show a page now"),
        }
    }
    None
}

/// The nodes that may be asked for a page of the device at `ip`: alive, with Chromium, on a way to its segment, and in
/// its zone where it has one, because elsewhere the address is another device's. The nearest first.
fn able(cluster: &Cluster, ip: IpAddr) -> Result<Vec<NodeId>, Fault> {
    let (view, me) = (cluster.view(), cluster.me().id.0);
    let units = rows::units(&view)?;
    let Some(unit) = units.iter().find(|unit| unit.node == me && covers(unit, ip)) else {
        return Ok(Vec::new());
    };
    let meta = rows::meta(&view)?;
    let reaches = rows::reaches(&view)?;
    let way = |node: u64| {
        let mut ways = reaches.iter().filter(|row| row.node == node).filter_map(|row| row.reach.as_ref());
        ways.find(|reach| reach.segment == unit.segment && reach.reachable)
    };
    let mut able: Vec<(u32, u64)> = rows::members(&view)?
        .iter()
        .filter(|member| member.id != me && member.capabilities.iter().any(|name| name == CHROMIUM))
        .filter(|member| {
            let heard = meta.heard.iter().any(|heard| heard.node == member.id);
            NodeView::of(member, heard, Millis(0)).is_eligible()
        })
        .filter(|member| unit.zone == ANY_ZONE || member.zone == unit.zone)
        .filter_map(|member| Some((way(member.id)?.hops.unwrap_or(u32::MAX), member.id)))
        .collect();
    able.sort_unstable();
    Ok(able.into_iter().map(|(_, id)| NodeId(id)).collect())
}

fn covers(unit: &UnitRow, ip: IpAddr) -> bool {
    unit.prefix.parse::<IpNet>().is_ok_and(|prefix| prefix.contains(&ip))
}

fn received(reply: ShowReply) -> Handed {
    let fingerprint = reply.certificate.as_ref().try_into().ok().map(Fingerprint);
    let learnt = Learnt { fingerprint, login_refused: reply.login_refused, found: false };
    let page = match reply.result {
        Some(Came::Page(page)) => page_of(page).ok_or(RenderMiss::Web(WebError::Garbled)),
        Some(Came::Miss(miss)) => Err(miss_of(&miss)),
        None => Err(RenderMiss::Web(WebError::Garbled)),
    };
    Handed { page, learnt }
}

fn page_of(page: ShownPage) -> Option<(Fetched, Shown)> {
    let fetched = Fetched {
        url: page.url.parse().ok()?,
        status: u16::try_from(page.status).ok()?,
        content_type: Some("text/html; charset=utf-8".to_owned()),
        location: None,
        cookies: Vec::new(),
        octets: page.html.clone().into_bytes(),
    };
    Some((fetched, Shown { html: page.html, text: page.text, refused: 0 }))
}

fn miss_of(miss: &ShowMiss) -> RenderMiss {
    match miss.why() {
        Why::Browser => RenderMiss::Browser(BrowserMiss::Broken(miss.detail.clone())),
        Why::Silent => RenderMiss::Web(WebError::Silent),
        Why::TooMuch => RenderMiss::Web(WebError::TooMuch),
        Why::Elsewhere => RenderMiss::Web(WebError::Elsewhere),
        Why::Login => RenderMiss::Web(WebError::WantsLogin),
    }
}

/// Shows a page for another node, unless that gives it up meanwhile.
pub(super) async fn show(tools: Tools, wanted: Wanted) {
    let Wanted { page, mut reply } = wanted;
    let shown = tokio::select! {
        biased;
        () = reply.closed() => return,
        shown = shown(&tools, &page) => shown,
    };
    // Whoever asked may have gone.
    drop(reply.send(shown));
}

async fn shown(tools: &Tools, page: &ShowRequest) -> ShowReply {
    let refused = |detail: &str| {
        let miss = ShowMiss { why: Why::Browser.into(), detail: detail.to_owned() };
        ShowReply { result: Some(Came::Miss(miss)), ..ShowReply::default() }
    };
    let (Ok(ip), Some(path)) = (page.address.parse::<IpAddr>(), WebPath::new(&page.path)) else {
        return refused("the page has no address");
    };
    let searched = rows::units(&tools.cluster.view()).is_ok_and(|units| units.iter().any(|u| covers(u, ip)));
    if !searched || !Browser::found() {
        return refused("the page is not shown by that node");
    }
    let mut asking = tools.web.asking(&tools.settings, ip, &Pin::of(&page.certificate));
    asking.elsewhere = None;
    let mut pages = Pages::new(ip, &asking);
    let rendered = pages.render(path.as_str(), usize::try_from(page.most).unwrap_or(usize::MAX)).await;
    let learnt = pages.learnt();
    ShowReply {
        result: Some(said(rendered)),
        certificate: learnt.fingerprint.map(|found| found.0.to_vec()).unwrap_or_default().into(),
        login_refused: learnt.login_refused,
    }
}

fn said(rendered: Result<(Fetched, Shown), RenderMiss>) -> Came {
    let miss = |why: Why, detail: String| Came::Miss(ShowMiss { why: why.into(), detail });
    match rendered {
        Ok((fetched, shown)) => Came::Page(ShownPage {
            url: fetched.url.to_string(),
            status: u32::from(fetched.status),
            html: shown.html,
            text: shown.text,
        }),
        Err(RenderMiss::Browser(browser)) => miss(Why::Browser, browser.to_string()),
        Err(RenderMiss::Web(error)) => match error {
            WebError::Silent | WebError::Garbled | WebError::Status(_) => miss(Why::Silent, String::new()),
            WebError::TooMuch => miss(Why::TooMuch, String::new()),
            WebError::Elsewhere => miss(Why::Elsewhere, String::new()),
            WebError::WantsLogin | WebError::LoginRefused => miss(Why::Login, String::new()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_and_every_miss_arrive_as_they_left() {
        let fetched = Fetched {
            url: "https://10.0.0.5/status?x=1".parse().unwrap(),
            status: 200,
            content_type: None,
            location: None,
            cookies: Vec::new(),
            octets: b"before".to_vec(),
        };
        let shown = Shown { html: "<p>ä 7</p>".to_owned(), text: "ä 7".to_owned(), refused: 1 };
        let reply = ShowReply {
            result: Some(said(Ok((fetched, shown)))),
            certificate: vec![7; 32].into(),
            login_refused: true,
        };
        let handed = received(reply);
        let (page, shown) = handed.page.unwrap();
        assert_eq!((page.url.as_str(), page.status), ("https://10.0.0.5/status?x=1", 200));
        assert_eq!((page.text().as_str(), shown.text.as_str()), ("<p>ä 7</p>", "ä 7"));
        assert_eq!(
            (handed.learnt.fingerprint, handed.learnt.login_refused),
            (Some(Fingerprint([7; 32])), true)
        );
        let come = |miss| match said(Err(miss)) {
            Came::Miss(miss) => miss_of(&miss),
            Came::Page(_) => panic!("a miss is no page"),
        };
        for error in [WebError::Silent, WebError::TooMuch, WebError::Elsewhere, WebError::WantsLogin] {
            let came = come(RenderMiss::Web(error.clone()));
            assert!(matches!(&came, RenderMiss::Web(came) if *came == error), "{came:?}");
        }
        assert!(matches!(come(RenderMiss::Browser(BrowserMiss::TooSlow)), RenderMiss::Browser(_)));
        assert!(received(ShowReply::default()).page.is_err());
    }
}
