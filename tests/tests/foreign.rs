//! net-snmp's `snmpd` as a foreign peer: v2c, v3 with the right and with wrong credentials. A server that
//! answers is a responder, never a device.

use anyhow::{Context, Result, ensure};
use quire_tests::cluster::Programs;
use quire_tests::process::{Output, complain};
use quire_tests::world::Snmpd;
use serde_json::Value;
use std::net::Ipv4Addr;

/// Runs `quire discover` on the daemon; gives what it printed and its summary.
fn discover(snmpd: &Snmpd, credentials: &[&str]) -> Result<(Output, Value)> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("summary.json");
    let (target, port) = (snmpd.address.ip().to_string(), snmpd.address.port().to_string());
    let summary = file.display().to_string();
    let plain = ["discover", &target, "--port", &port, "--format", "json", "--summary", &summary];
    let output = Programs::find()?.quire(&[&plain, credentials].concat())?;
    let summary = serde_json::from_slice(&std::fs::read(&file).context("read the summary")?)?;
    Ok((output, summary))
}

fn v3<'a>(user: &'a str, auth: &'a str, privacy: &'a str) -> [&'a str; 10] {
    [
        "--v3-user",
        user,
        "--v3-auth",
        "sha256",
        "--v3-auth-pass",
        auth,
        "--v3-priv",
        "aes",
        "--v3-priv-pass",
        privacy,
    ]
}

fn start(last: u8) -> Result<Option<Snmpd>> {
    if Snmpd::program().is_none() {
        complain("left out: net-snmp as a foreign peer (snmpd is not installed)");
        return Ok(None);
    }
    Snmpd::start(Ipv4Addr::new(127, 22, 0, last)).map(Some)
}

#[test]
fn a_server_is_a_responder_and_no_device() {
    let Some(snmpd) = start(1).unwrap() else { return };
    let right = v3(Snmpd::USER, Snmpd::AUTH, Snmpd::PRIV);
    for credentials in [&["--v2c"][..], &["--v1"], &right] {
        let (output, summary) = discover(&snmpd, credentials).unwrap();
        assert_eq!(summary["responders"], 1, "{credentials:?}: {summary} {output:?}");
        assert_eq!(summary["devices"], 0, "{credentials:?}: {summary}");
        assert_eq!(output.ok().unwrap(), "", "{credentials:?}");
    }
}

#[test]
fn refused_credentials_are_named_once_without_the_password() {
    let Some(snmpd) = start(2).unwrap() else { return };
    let refused = [
        (v3(Snmpd::USER, "wrong-password", Snmpd::PRIV), "wrong authentication password"),
        (v3(Snmpd::USER, Snmpd::AUTH, "wrong-password"), "wrong privacy password"),
        (v3("nobody", Snmpd::AUTH, Snmpd::PRIV), "unknown user"),
    ];
    for (credentials, reason) in refused {
        // A community that the daemon ignores, so that nothing but the user can succeed.
        let all = [&credentials[..], &["--community", "not-this"]].concat();
        let (output, _) = discover(&snmpd, &all).unwrap();
        let line = format!("{}: user {}: {reason}", snmpd.address.ip(), credentials[1]);
        let times = output.stderr.lines().filter(|said| said.contains(&line)).count();
        assert_eq!(times, 1, "expected {line:?} once in\n{}", output.stderr);
        assert!(!output.stderr.contains("wrong-password"), "a secret was printed:\n{}", output.stderr);
        assert_eq!(output.stdout, "");
    }
}

#[test]
fn an_address_without_a_responder_is_no_error() {
    fn scenario() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("summary.json").display().to_string();
        let args = [
            "discover",
            "127.22.0.9",
            "--port",
            "9",
            "--timeout",
            "100ms",
            "--retries",
            "0",
            "--summary",
            &file,
        ];
        let said = Programs::find()?.quire(&args)?.ok()?;
        let summary: Value = serde_json::from_slice(&std::fs::read(&file)?)?;
        ensure!(summary["responders"] == 0 && summary["addresses"] == 1, "{summary} {said}");
        Ok(())
    }
    scenario().unwrap();
}
