use super::*;
use crate::ber::{self, V2C};
use crate::process::{free_udp_port, wait};
use std::net::UdpSocket;

const DESCR: [u32; 9] = [1, 3, 6, 1, 2, 1, 1, 1, 0];

fn spec() -> Spec {
    Spec {
        port: 0,
        first: Ipv4Addr::new(127, 66, 0, 0),
        addresses: 1024,
        every: 64,
        devices: 8,
        delay: 0,
        loss: 0,
        answers: 0,
        supplies: 0,
        record: false,
        seed: 1,
    }
}

/// A responder that serves while `ask` asks; gives what it saw.
fn served(spec: Spec, ask: impl FnOnce(&Spec, &UdpSocket, &Mutex<Seen>)) -> Seen {
    let spec = Spec { port: free_udp_port(Ipv4Addr::UNSPECIFIED.into()).unwrap(), ..spec };
    let responder = Responder::bind(&spec).unwrap();
    let (seen, stop) = (responder.seen(), Arc::new(AtomicBool::new(false)));
    let told = Arc::clone(&stop);
    let thread = std::thread::spawn(move || responder.serve(&told));
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    ask(&spec, &socket, &seen);
    stop.store(true, Ordering::Relaxed);
    thread.join().unwrap().unwrap();
    seen.lock().unwrap().clone()
}

fn question(id: i64) -> Vec<u8> {
    ber::write_request(V2C, "public", pdu::GET, id, (0, 0), &[&DESCR])
}

/// Who answers the next `count` times.
fn heard(socket: &UdpSocket, count: usize) -> Vec<Ipv4Addr> {
    let mut buffer = [0; 2048];
    let mut from = Vec::new();
    while from.len() < count {
        let (length, peer) = socket.recv_from(&mut buffer).unwrap();
        assert_eq!(ber::read_response(&buffer[..length]).unwrap().0, 0);
        if let std::net::IpAddr::V4(ip) = peer.ip() {
            from.push(ip);
        }
    }
    from.sort();
    from
}

#[test]
fn devices_answer_from_the_address_that_was_asked_and_others_are_silent() {
    for record in [false, true] {
        let seen = served(Spec { record, ..spec() }, |spec, socket, _| {
            // The last devices come last, so that their answers end the wait for all.
            for n in 0..1024 {
                let to = Ipv4Addr::from(u32::from(spec.first) + n);
                socket.send_to(&question(n.into()), (to, spec.port)).unwrap();
            }
            let expected: Vec<Ipv4Addr> = (0..8).map(|n| spec.address(n)).collect();
            assert_eq!(heard(socket, 8), expected);
            assert_eq!(expected[1], Ipv4Addr::new(127, 66, 0, 81));
        });
        assert_eq!((seen.packets_out, seen.devices, seen.crowded), (8, 8, 0), "{seen:?}");
        assert!(if record { seen.packets_in > 465 } else { seen.packets_in == 8 }, "{seen:?}");
        assert!(!record || (1..=1024).contains(&seen.second_max), "{seen:?}");
    }
}

#[test]
fn a_second_question_before_the_first_answer_is_counted_and_a_repeated_one_apart() {
    let mut devices = Devices::new(&spec());
    let mut seen = Seen::default();
    for (device, question) in [(0, 1), (0, 1), (0, 2), (1, 3)] {
        count_waiting(devices.get(device), question, &mut seen);
    }
    assert_eq!((seen.in_flight_max, seen.crowded, seen.repeated), (2, 1, 1), "{seen:?}");
}

/// One request, as it is read.
fn read(kind: u8, id: i64, names: &[&[u32]]) -> Request {
    let mut request = Request::default();
    request.read(&ber::write_request(V2C, "public", kind, id, (0, 9), names)).unwrap();
    request
}

#[test]
fn the_usual_question_is_the_one_that_came_most_whatever_its_ids() {
    let (mut tally, mut seen) = (Tally::default(), Seen::default());
    let other: &[u32] = &[1, 3, 6, 1, 2, 1, 43];
    for (kind, id, names) in [
        (pdu::GET, 1, &[&DESCR[..], other][..]),
        (pdu::GETBULK, 2, &[other]),
        (pdu::GET, 3, &[&DESCR]),
        (pdu::GETBULK, 4, &[other]),
    ] {
        let request = read(kind, id, names);
        tally.take(digest(&request), &request, &[], &mut seen);
    }
    assert_eq!(digest(&read(pdu::GET, 1, &[&DESCR])), digest(&read(pdu::GET, 2, &[&DESCR])));
    let usual = seen.usual;
    assert_eq!((usual.times, usual.bulk, usual.repeats), (2, true, (0, 9)));
    assert_eq!(usual.names, ["1.3.6.1.2.1.43"]);
}

#[test]
fn the_busiest_second_is_any_and_not_one_of_the_clocks() {
    let mut seconds = Seconds::default();
    let mut seen = Seen::default();
    for millis in [0, 100, 900, 950, 1_050, 1_899, 2_900] {
        seconds.take(Duration::from_millis(millis), &mut seen);
    }
    assert_eq!((seen.second_max, seen.millis), (4, 2_900), "900 to 1,899");
}

#[test]
fn losses_are_drawn_from_the_seed_each_way() {
    let run = || {
        served(Spec { loss: 500, every: 1, devices: 1000, ..spec() }, |spec, socket, seen| {
            for n in 0..400 {
                socket.send_to(&question(n.into()), (spec.address(n), spec.port)).unwrap();
            }
            wait("all to be heard or lost", Duration::from_secs(20), || {
                let seen = seen.lock().unwrap().clone();
                anyhow::ensure!(seen.packets_out + seen.lost == 400, "{seen:?}");
                Ok(())
            })
            .unwrap();
        })
    };
    let seen = run();
    assert!((250..350).contains(&seen.lost), "a quarter of 400 gets through: {seen:?}");
    assert_eq!(seen.lost, run().lost, "the same seed, the same losses");
}

#[test]
fn a_device_of_eight_supplies_has_eight() {
    let model = of_one_kind(8);
    let table = Table::printer(&model, false);
    let level = |row: u32| table.get(&[1, 3, 6, 1, 2, 1, 43, 11, 1, 1, 9, 1, row]).is_some();
    assert!((1..=8).all(level) && !level(9));
    assert_eq!(of_one_kind(5).supplies.len(), 5);
    assert_eq!(of_one_kind(SUPPLIES_MAX).supplies.len(), SUPPLIES_MAX);
}

#[test]
fn messages_of_snmpv3_are_told_from_the_others() {
    assert!(ber::is_v3(&[0x30, 3, 2, 1, 3]));
    for other in [&[0x30, 3, 2, 1, 1][..], &[0x30, 3, 4, 1, 3], &[]] {
        assert!(!ber::is_v3(other), "{other:?}");
    }
}
