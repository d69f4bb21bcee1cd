//! What people and networks get wrong: each gets a clear answer and changes nothing.

use anyhow::{Context, Result, ensure};
use quire_tests::cluster::{COMMAND, Cluster, Programs, TRANSITION, own_host, settings};
use quire_tests::process::{Output, free_tcp_port, run, wait};
use std::io::Write;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

#[test]
fn wrong_usage_exits_with_2_and_help_with_0() {
    let programs = Programs::find().unwrap();
    let run = |program: &str, args: &[&str]| run(&programs.path(program), args, COMMAND).unwrap();
    let wrong: [(&str, &[&str]); 9] = [
        ("quire", &["--nonsense"]),
        ("quire", &["no-such-command"]),
        ("quire", &["node", "--init", "demo"]),
        ("quire", &["discover"]),
        ("quire", &["discover", "300.1.1.1"]),
        ("quire", &["discover", "127.0.0.1", "--port", "70000"]),
        (
            "quire",
            &[
                "discover",
                "127.0.0.1",
                "--v3-user",
                "u",
                "--v3-auth",
                "rot13",
                "--v3-auth-pass",
                "long enough",
            ],
        ),
        ("quire-admin", &["--nonsense"]),
        ("quire-admin", &["site", "add"]),
    ];
    for (program, args) in wrong {
        let output = run(program, args);
        assert_eq!(output.code, 2, "{output:?}");
        assert!(!output.stderr.trim().is_empty() && output.stdout.is_empty(), "{output:?}");
    }
    for program in ["quire", "quire-admin"] {
        for flag in ["--help", "--version"] {
            let output = run(program, &[flag]);
            assert!(output.code == 0 && !output.stdout.is_empty(), "{output:?}");
        }
    }
}

#[test]
fn a_data_directory_without_a_node_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().display().to_string();
    let output = Programs::find().unwrap().quire(&["--data-dir", &place, "status"]).unwrap();
    assert_eq!(output.code, 1, "{output:?}");
    assert!(output.stderr.contains(&place), "{output:?}");
}

#[test]
fn settings_with_a_bad_line_change_nothing_and_name_it() {
    fn scenario() -> Result<()> {
        let cluster = Cluster::start(&["n1"])?;
        cluster.apply(&settings(&["127.24.0.0/24"], 1161, 400))?;
        let before = cluster.any(&["settings", "show"])?.ok()?;
        ensure!(before.contains("127.24.0.0/24"), "{before}");
        let bad = [
            ("[discovery]\nsegments = [\"127.25.0.0/24\"]\nrate = \"many\"\n", "line 3"),
            ("[discovery]\nsegments = [\n  \"127.25.0.0/24\",\n  \"127.25.0.0/33\",\n]\n", "line 4"),
            ("[discovery]\nsegments = [\"127.25.0.0/24\"]\n\n[metering]\nevery = \"1s\"\n", "line 5"),
            ("[discovery]\nsegmnts = [\"127.25.0.0/24\"]\n", "line 2"),
            ("[discovery\n", "line 1"),
            (
                "[[snmp]]\nversion = \"3\"\nuser = \"u\"\nauth = \"sha256\"\nauth_pass = \"secret-words\"\n",
                "permission",
            ),
        ];
        for (text, place) in bad {
            let file = cluster.scratch("bad.toml");
            std::fs::write(&file, text)?;
            let output = cluster.any(&["settings", "apply", &file.display().to_string()])?;
            ensure!(output.code == 1 && output.stderr.contains(place), "{text:?} gave {output:?}");
            ensure!(!output.stderr.contains("secret-words"), "a secret was printed: {output:?}");
        }
        let after = cluster.any(&["settings", "show"])?.ok()?;
        ensure!(before == after, "settings changed from\n{before}\nto\n{after}");
        cluster.finish()
    }
    scenario().unwrap();
}

/// Tries to join a node in `data` and gives how it ended.
fn try_join(cluster: &Cluster, data: &Path, token: &str) -> Result<Output> {
    let first = cluster.nodes().first().context("no node")?;
    let listen = SocketAddr::new(first.listen.ip(), free_tcp_port(first.listen.ip())?).to_string();
    let (data, door) = (data.display().to_string(), first.listen.to_string());
    let args = [
        "node",
        "--data-dir",
        &data,
        "--name",
        "late",
        "--listen",
        &listen,
        "--join",
        &door,
        "--token",
        token,
    ];
    run(&cluster.programs().path("quire"), &args, TRANSITION)
}

#[test]
fn tokens_that_are_wrong_expired_or_used_join_nobody() {
    fn scenario() -> Result<()> {
        let mut cluster = Cluster::start(&["n1"])?;
        let used = cluster.token()?;
        let file = cluster.scratch("n2.token");
        cluster.join("n2")?;
        let spent = std::fs::read_to_string(file)?;
        let expired = cluster.any(&["token", "create", "--ttl", "1ms"])?.ok()?;
        let expired = expired.lines().last().context("no token")?.to_owned();
        let before = cluster.list(&["token", "list"])?;
        let taken_back = cluster.token()?;
        let listed = cluster.list(&["token", "list"])?;
        let new = listed.iter().find(|row| !before.contains(row) && row["state"] == "open");
        let id = new.and_then(|row| row["id"].as_str()).context("the new token is not listed")?.to_owned();
        cluster.any(&["token", "revoke", &id])?.ok()?;
        ensure!(cluster.any(&["token", "revoke", &id])?.code == 1, "a token was taken back twice");
        let mut damaged = used.clone().into_bytes();
        let middle = damaged.len() / 2;
        damaged[middle] = if damaged[middle] == b'a' { b'b' } else { b'a' };
        let damaged = String::from_utf8(damaged)?;
        for (n, token) in ["nonsense", &damaged, &expired, spent.trim(), &taken_back].into_iter().enumerate()
        {
            let output = try_join(&cluster, &cluster.scratch(&format!("late{n}")), token)?;
            ensure!(output.code == 1 || output.code == 2, "{token} gave {output:?}");
            ensure!(!output.stderr.trim().is_empty(), "{token} was refused without a word");
        }
        ensure!(cluster.status()?.members.len() == 2, "somebody joined: {:?}", cluster.status()?);
        cluster.finish()
    }
    scenario().unwrap();
}

#[test]
fn a_data_directory_is_made_once_and_belongs_to_one_cluster() {
    fn scenario() -> Result<()> {
        let mut ours = Cluster::start(&["n1"])?;
        let theirs = Cluster::start(&["n1"])?;
        let data = ours.node("n1")?.data.clone();
        let again = || {
            let listen = SocketAddr::new(own_host(), 0).to_string();
            let data = data.display().to_string();
            let args = ["node", "--data-dir", &data, "--name", "n1", "--listen", &listen, "--init", "second"];
            run(&Programs::find()?.path("quire"), &args, COMMAND)
        };
        let while_running = again()?;
        ensure!(while_running.code == 1 && !while_running.stderr.is_empty(), "{while_running:?}");
        ours.stop("n1")?;
        let while_stopped = again()?;
        ensure!(while_stopped.code == 1 && !while_stopped.stderr.is_empty(), "{while_stopped:?}");
        let stranger = try_join(&theirs, &data, &theirs.token()?)?;
        ensure!(stranger.code == 1 && !stranger.stderr.is_empty(), "{stranger:?}");
        ensure!(theirs.status()?.members.len() == 1, "a node of another cluster joined");
        ours.restart("n1")?;
        wait("the node to lead again", TRANSITION, || {
            let status = ours.status()?;
            ensure!(status.cluster == "demo" && status.role == "leader", "{status:?}");
            Ok(())
        })?;
        theirs.finish()?;
        ours.finish()
    }
    scenario().unwrap();
}

/// Files of a data directory that look like certificates.
fn certificates(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        if path.is_dir() {
            found.extend(certificates(&path)?);
        } else if name.contains("cert") || [".pem", ".crt", ".der"].iter().any(|end| name.ends_with(end)) {
            found.push(path);
        }
    }
    Ok(found)
}

#[test]
fn a_damaged_certificate_is_named_and_the_node_does_not_start() {
    fn scenario() -> Result<()> {
        let mut cluster = Cluster::start(&["n1"])?;
        cluster.stop("n1")?;
        let data = cluster.node("n1")?.data.clone();
        let files = certificates(&data)?;
        ensure!(!files.is_empty(), "no certificate lies in {}", data.display());
        for file in files {
            let good = std::fs::read(&file)?;
            std::fs::write(&file, b"not a certificate")?;
            let args = ["node", "--data-dir", &data.display().to_string()];
            let output = run(&cluster.programs().path("quire"), &args, TRANSITION)?;
            std::fs::write(&file, good)?;
            let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            ensure!(output.code == 1 && output.stderr.contains(&name), "{} gave {output:?}", file.display());
        }
        cluster.restart("n1")?;
        wait("the node to lead again", TRANSITION, || {
            ensure!(cluster.status()?.role == "leader", "it does not lead");
            Ok(())
        })?;
        cluster.finish()
    }
    scenario().unwrap();
}

/// Beginnings of what a scanner, a browser, another TLS stack or an enemy might send.
fn hostile() -> Vec<Vec<u8>> {
    let mut state = 0x2545_F491_4F6C_DD1Du64;
    let mut noise = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    let mut all = vec![
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        vec![0x16, 0x03, 0x01, 0xFF, 0xFF, 0x01],
        vec![0x16, 0x03, 0x03, 0x00, 0x05, 0x01, 0x00, 0x00, 0x01, 0x00],
        vec![0; 70_000],
        Vec::new(),
    ];
    all.extend((0..200).map(|n| (0..n * 7).map(|_| noise()).collect()));
    all
}

#[test]
fn hostile_packets_are_survived() {
    fn scenario() -> Result<()> {
        let mut cluster = Cluster::start(&["n1"])?;
        cluster.start_admin()?;
        let node = cluster.node("n1")?;
        let admin = cluster.admin().context("no Web Admin")?;
        let doors = [node.listen, node.console, admin.listen, admin.console];
        let udp = UdpSocket::bind((own_host(), 0))?;
        for door in doors {
            for octets in hostile() {
                // Being cut off in the middle is an answer too.
                let mut stream = TcpStream::connect_timeout(&door, Duration::from_secs(5))
                    .with_context(|| format!("{door} no longer listens"))?;
                stream.set_write_timeout(Some(Duration::from_secs(5)))?;
                let _ = stream.write_all(&octets);
                let _ = udp.send_to(&octets[..octets.len().min(1400)], door);
            }
        }
        let status = cluster.status()?;
        ensure!(status.role == "leader" && status.quorum, "{status:?}");
        cluster.quire_admin(&["site", "list"])?.ok()?;
        cluster.finish()
    }
    scenario().unwrap();
}
