//! What a fuzzer may do to scripts and to what they read.

use quire_proto::reading::Reading;
use reqwest::Url;
use tokio_util::sync::CancellationToken;

use super::pages::{self, Html, Xml};
use super::sandbox::{self, Limits};
use super::{Known, Profile, Recording, WebPath};
use crate::dice::Dice;

const LIMITS: Limits = Limits { operations: 20_000, requests: 8, bytes: 64 << 10, seconds: 5 };
const DEVICE: &str = "1.3.6.1.2.1.1.5.0|4|hello\n1.3.6.1.4.1.1.1|2|-2\n1.3.6.1.4.1.1.2|65|9";

/// Documents as a script takes them apart: a selector, and JSON, XML and HTML in one text.
pub(crate) fn documents(data: &[u8]) {
    let mut dice = Dice::new(data);
    let selector = String::from_utf8_lossy(dice.piece()).into_owned();
    let text = String::from_utf8_lossy(dice.rest()).into_owned();
    drop(pages::json(&text));
    if let Ok(xml) = Xml::parse(&text) {
        xml.find(&selector);
        xml.find("a/b");
    }
    drop(Html::new(&text).select(&selector));
    pages::text_of(&text);
}

/// A script of somebody's: it ends, within its budgets, and does not take the thread with it.
pub(crate) fn script(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let source = format!("//! name: try\n//! version: 1\n//! match: family brother\n{text}");
    drop(Profile::parse(&text));
    let Ok(profile) = Profile::parse(&source) else { return };
    let device = Box::new(Recording::parse(DEVICE));
    let stop = CancellationToken::new();
    let run = sandbox::run(&profile, &Reading::default(), Known::default(), device, LIMITS, &stop);
    assert!(run.cost.operations <= LIMITS.operations + 1);
    assert!(run.cost.requests <= LIMITS.requests);
}

/// A path that a script may ask for never leaves its device.
pub(crate) fn path(data: &[u8]) {
    let Some(path) = std::str::from_utf8(data).ok().and_then(WebPath::new) else { return };
    let Ok(base) = Url::parse("http://192.0.2.7:8080/") else { return };
    for url in [base.join(path.as_str()), Url::parse(&format!("http://192.0.2.7:8080{}", path.as_str()))] {
        let Ok(url) = url else { panic!("{} is a path and no URL", path.as_str()) };
        assert_eq!(
            (url.host_str(), url.port(), url.scheme()),
            (Some("192.0.2.7"), Some(8080), "http"),
            "{url}"
        );
    }
}
