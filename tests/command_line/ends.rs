//! How the process ends while it has work that would take long.

use super::*;

/// Work that takes minutes: a score of many samples, or the longest text there may be.
fn begin(server: &Server, words: &[&str]) -> Child {
    let mut command = Command::new(CHOIR);
    command.args(words).env("CHOIR_SERVER", &server.address);
    let piped = command.stdout(Stdio::piped()).stderr(Stdio::piped());
    piped.stdin(Stdio::null()).spawn().expect("a client")
}

/// Asks until the server says what is wished.
fn until(server: &Server, wish: impl Fn(&Value) -> bool) {
    let came = (0..1000).any(|_| wish(&server.json(&["status"])));
    assert!(came, "{}", server.json(&["status"]));
}

#[allow(unsafe_code, reason = "one call of the system")]
fn terminate(server: &Server) {
    // SAFETY: it is a child that has not been waited for.
    unsafe { libc::kill(server.process.id() as i32, libc::SIGTERM) };
}

const LONG: [&[&str]; 2] = [
    &[
        "score",
        "The heaven and the earth, the sea and the dry land, and all that is in them",
        "--samples",
        "4096",
    ],
    &["generate", "It was", "-n", "16000", "--seed", "1"],
];

#[test]
fn a_drain_that_is_over_ends_what_is_left() {
    let mut server = Server::of(&["--drain-seconds", "1"]);
    let asking = LONG.map(|words| begin(&server, words));
    until(&server, |status| status["running"] == 2);
    terminate(&server);
    for asking in asking {
        let said = asking.wait_with_output().expect("a client");
        let told = text(&said.stderr);
        assert!(
            !said.status.success() && told.contains("the server has ended"),
            "{told}"
        );
    }
    assert_eq!(server.process.wait().expect("a server").code(), Some(0));
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let mut server = Server::of(&["--drain-seconds", "3600"]);
    let asking = begin(&server, LONG[1]);
    until(&server, |status| status["running"] == 1);
    terminate(&server);
    until(&server, |status| status["draining"] == true);
    terminate(&server);
    assert_eq!(server.process.wait().expect("a server").code(), Some(1));
    assert!(
        !asking
            .wait_with_output()
            .expect("a client")
            .status
            .success()
    );
}
