//! Notifications by mail, through the relay of the settings. What is on its way at once to one mailbox is one mail.

use std::time::Duration;

use lettre::message::Mailbox;
use lettre::message::header::{ContentType, Header, HeaderName, HeaderValue};
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Tls, TlsParameters};
use lettre::{AsyncSmtpTransport, AsyncTransport as _, Message, Tokio1Executor};
use quire_coordinator::settings::{Mail, MailTls};

/// How long the relay may take for each of its answers.
const ANSWERING: Duration = Duration::from_secs(20);

/// One mail in plain text.
pub(super) struct Letter {
    pub(super) to: String,
    /// The same whenever the same is said again: receivers tell by it.
    pub(super) id: String,
    pub(super) subject: String,
    pub(super) text: String,
}

/// Hands a mail to the relay, and answers once that has taken it.
///
/// # Errors
/// Says why in words without user and password.
pub(super) async fn send(mail: &Mail, letter: Letter) -> Result<(), String> {
    let message = message(mail, letter)?;
    let host = mail.host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let parameters = || TlsParameters::new(host.clone()).map_err(|error| format!("prepare TLS: {error}"));
    let tls = match mail.tls {
        MailTls::Implicit => Tls::Wrapper(parameters()?),
        MailTls::Start => Tls::Required(parameters()?),
        MailTls::Plain => Tls::None,
    };
    let mut relay = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(host)
        .port(mail.port)
        .tls(tls)
        .timeout(Some(ANSWERING));
    if let Some((user, password)) = &mail.login {
        relay = relay.credentials(Credentials::new(user.clone(), password.expose().to_owned()));
    }
    relay.build().send(message).await.map(drop).map_err(|error| error.to_string())
}

fn message(mail: &Mail, letter: Letter) -> Result<Message, String> {
    let mailbox =
        |text: &str| text.parse::<Mailbox>().map_err(|error| format!("the address {text}: {error}"));
    // What devices say of themselves may hold anything.
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    Message::builder()
        .from(mailbox(&mail.from)?)
        .to(mailbox(&letter.to)?)
        .message_id(Some(format!("<{}@quire>", letter.id)))
        .subject(letter.subject.chars().map(plain).collect::<String>())
        .header(AutoSubmitted)
        .header(ContentType::TEXT_PLAIN)
        .body(letter.text)
        .map_err(|error| format!("write the mail: {error}"))
}

/// Nobody's holiday notice needs to answer (RFC 3834).
#[derive(Clone)]
struct AutoSubmitted;

impl Header for AutoSubmitted {
    fn name() -> HeaderName {
        HeaderName::new_from_ascii_str("Auto-Submitted")
    }

    fn parse(_: &str) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        Ok(AutoSubmitted)
    }

    fn display(&self) -> HeaderValue {
        HeaderValue::new(Self::name(), "auto-generated".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quire_coordinator::settings::Secret;
    use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
    use tokio::net::TcpListener;

    fn relay(port: u16, tls: MailTls) -> Mail {
        let login = Some(("quire".to_owned(), Secret::new("hush")));
        Mail { host: "127.0.0.1".into(), port, tls, from: "quire@example.org".into(), login }
    }

    fn letter() -> Letter {
        Letter {
            to: "it@example.org".into(),
            id: "07070707-9-1-20".into(),
            subject: "low toner\r\nBcc: all@example.org".into(),
            text: "Black of M605: supply.percent 4\n.\nend".into(),
        }
    }

    /// A relay that takes one mail and answers what it heard.
    async fn one_mail(listener: TcpListener, offer: &'static str) -> Vec<String> {
        let (stream, _) = listener.accept().await.unwrap();
        let (read, mut write) = stream.into_split();
        let (mut lines, mut heard, mut data) = (BufReader::new(read).lines(), Vec::new(), false);
        write.write_all(b"220 relay\r\n").await.unwrap();
        while let Ok(Some(line)) = lines.next_line().await {
            let answer = match line.split(' ').next().unwrap_or_default() {
                "." if data => "250 taken",
                _ if data => "",
                "EHLO" => offer,
                "AUTH" => "235 welcome",
                "DATA" => "354 go on",
                "QUIT" => "221 bye",
                _ => "250 ok",
            };
            data = (data || line == "DATA") && line != ".";
            heard.push(line);
            if !answer.is_empty() && write.write_all(format!("{answer}\r\n").as_bytes()).await.is_err() {
                break;
            }
        }
        heard
    }

    #[tokio::test]
    async fn a_relay_takes_a_mail_and_a_subject_is_one_line() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let heard = tokio::spawn(one_mail(listener, "250-relay\r\n250 AUTH PLAIN"));
        send(&relay(port, MailTls::Plain), letter()).await.unwrap();
        let heard = heard.await.unwrap();
        let has = |start: &str| heard.iter().any(|line| line.starts_with(start));
        for start in [
            "MAIL FROM:<quire@example.org>",
            "RCPT TO:<it@example.org>",
            "AUTH PLAIN ",
            "Auto-Submitted: auto-generated",
        ] {
            assert!(has(start), "{start} in {heard:?}");
        }
        assert!(has("Message-ID: <07070707-9-1-20@quire>") && has(".."), "{heard:?}");
        assert!(!has("Bcc"), "{heard:?}");
    }

    #[tokio::test]
    async fn without_starttls_nothing_is_sent() {
        drop(rustls::crypto::ring::default_provider().install_default());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let heard = tokio::spawn(one_mail(listener, "250-relay\r\n250 AUTH PLAIN"));
        let why = send(&relay(port, MailTls::Start), letter()).await.unwrap_err();
        assert!(!why.contains("hush"), "{why}");
        let heard = heard.await.unwrap();
        assert!(!heard.iter().any(|line| line.starts_with("AUTH") || line.starts_with("MAIL")), "{heard:?}");
    }

    #[tokio::test]
    async fn a_relay_that_cannot_prove_who_it_is_gets_nothing() {
        let (at, heard) = crate::alerts::tests::impostor().await;
        let why = send(&relay(at.port(), MailTls::Implicit), letter()).await.unwrap_err();
        assert!(why.to_lowercase().contains("certificate") && !why.contains("hush"), "{why}");
        assert!(!heard.await.unwrap());
    }
}
