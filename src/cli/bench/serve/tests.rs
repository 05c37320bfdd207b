//! A load on a real server of the model compiled in.

use super::*;
use crate::load::RequestEnd;
use clap::Parser;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: ServeBenchArgs,
}

fn args(options: &str) -> ServeBenchArgs {
    let defaults = "bench --tokens 4..12 --warm-up 0 --seconds 600 --threads 1";
    let words = [defaults, options].map(str::split_whitespace);
    Cli::try_parse_from(words.into_iter().flatten())
        .expect("options")
        .args
}

/// What `work` finds of a server with a store of its own.
fn with_server<T>(work: impl AsyncFnOnce(String, tokio::task::AbortHandle) -> T) -> T {
    let dir = tempfile::tempdir().expect("directory");
    let store = dir.path().join("store").display().to_string();
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let own = Own::start(&args(&format!("--data-dir {store}")), &runtime).expect("server");
    runtime.block_on(work(own.address.clone(), own.served.abort_handle()))
}

#[test]
fn a_closed_and_an_open_load_are_answered() {
    with_server(async |address, _| {
        for arrivals in ["--clients 3", "--rate 500"] {
            let options = "--requests 24 --variants base,kjv,kjv-few --popularity zipf";
            let args = args(&format!("{options} {arrivals}"));
            let report = bench(&args, address.clone()).await.expect("report");
            let all = &report.overall;
            assert_eq!(
                (all.requests, all.finished, all.failed, report.unanswered),
                (24, 24, 0, 0),
                "{report}"
            );
            let asked = report.variants.iter().map(|variant| variant.requests);
            assert_eq!(asked.sum::<usize>(), 24);
            assert!(all.tokens >= 24 && all.first_block.p50 <= all.end_to_end.p50);
            let mut memory = report.memory.iter();
            assert!(memory.any(|(part, bytes)| part == "base" && *bytes > 0));
        }
        let unknown = bench(&args("--variants nobody"), address).await;
        let unknown = unknown.expect_err("refused");
        assert!(unknown.to_string().contains("nobody"), "{unknown}");
    });
}

#[test]
fn a_noisy_variant_an_overload_and_a_probe() {
    with_server(async |address, _| {
        let noisy =
            args("--variants base,kjv --noisy kjv=3 --clients 1 --requests 12 --probe quijote");
        let report = bench(&noisy, address.clone()).await.expect("report");
        let ended = (report.overall.finished, report.unanswered);
        assert_eq!(ended, (12, 0), "{report}");
        let [few, many] = [0, 1].map(|variant| report.variants[variant].requests);
        assert!(many > few, "{report}");
        let probe = report.probe.as_ref().expect("probed");
        assert!(
            probe.unloaded.p50.is_some() && report.to_string().contains("alone on quijote"),
            "{report}"
        );

        let mut over = args("--variants base --clients 2 --overload 2");
        over.seconds = 0.5;
        let report = bench(&over, address.clone()).await.expect("report");
        let overload = report.overload.expect("overload");
        assert!(
            overload.capacity > 0.0
                && overload.rate == 2.0 * overload.capacity
                && overload.deadline_ms > 0
        );
        assert!(report.to_string().contains("in time"), "{report}");

        for (options, word) in [
            ("--probe nobody --variants base", "nobody"),
            ("--probe kjv --variants kjv", "among"),
            ("--noisy kjv=2 --variants base", "--noisy"),
        ] {
            let found = bench(&args(options), address.clone()).await;
            let error = found.expect_err("refused");
            assert!(error.to_string().contains(word), "{error}");
        }
    });
}

#[test]
fn a_deadline_that_cannot_be_met_is_counted_as_late() {
    with_server(async |address, _| {
        let mut args = args("--requests 6 --clients 2 --variants kjv --deadline-ms 1");
        args.tokens = Span {
            least: 1000,
            most: 1000,
        };
        let report = bench(&args, address).await.expect("report");
        let ended = (report.overall.late, report.overall.finished);
        assert_eq!(ended, (6, 0), "{report}");
    });
}

/// Waits until the server has finished so many requests.
async fn finished(mut admin: AdminClient<Connection>, count: u64) {
    loop {
        let status = admin.get_status(pb::GetStatusRequest {}).await;
        if status.expect("status").into_inner().finished >= count {
            return;
        }
        tokio::task::yield_now().await;
    }
}

#[test]
fn what_came_before_a_server_went_away_is_kept() {
    for arrivals in [
        Arrivals::Closed { clients: 2 },
        Arrivals::Open { rate: 200.0 },
    ] {
        with_server(async |address, server| {
            let channel = ServerArgs::at(address).connect().await.expect("server");
            let names = vec![BASE.to_owned()];
            let driver = Driver {
                channel: channel.clone(),
                names: names.clone(),
                deadline: None,
            };
            let span = |tokens| Span {
                least: tokens,
                most: tokens,
            };
            let load = Load::new(LoadSettings {
                variants: 1,
                popularity: Popularity::Uniform,
                noisy: None,
                prompt_words: span(4),
                max_tokens: span(8),
                seed: 0,
            });
            let until = Until {
                time: Duration::from_secs(600),
                requests: u64::MAX,
            };
            let driven = tokio::spawn(driver.run(load, arrivals, until));
            finished(AdminClient::new(channel), 20).await;
            server.abort();
            let driven = driven.await.expect("driven");
            let finished = driven
                .outcomes
                .iter()
                .filter(|outcome| outcome.end == RequestEnd::Finished);
            assert!(finished.count() >= 5);
            let report = LoadReport::new(&driven, &names, Duration::ZERO);
            assert!(report.server_gone.is_some(), "{report}");
        });
    }
}

#[test]
fn a_bench_whose_server_goes_away_shows_what_it_has_and_fails() {
    let dir = tempfile::tempdir().expect("directory");
    let file = dir.path().join("report.json");
    let options = "--variants base --clients 2 --probe kjv --json";
    let args = args(&format!("{options} {}", file.display()));
    let report = with_server(async |address, server| {
        let kill = async {
            let connected = ServerArgs::at(address.clone()).connect().await;
            // The probe's requests before the load are thirty.
            finished(AdminClient::new(connected.expect("server")), 40).await;
            server.abort();
        };
        let (report, ()) = tokio::join!(bench(&args, address.clone()), kill);
        report.expect("report")
    });
    assert!(report.overall.finished >= 5, "{report}");
    let finished = report.overall.finished;
    let error = tell(&args, report).expect_err("not all of it").to_string();
    assert!(error.contains("went away"), "{error}");
    let kept: serde_json::Value =
        serde_json::from_slice(&std::fs::read(file).expect("file")).expect("json");
    assert_eq!(kept["overall"]["finished"], finished);
    assert!(kept["server_gone"].is_string(), "{kept}");
}

#[test]
fn impossible_loads_are_refused() {
    for options in [
        ["--rate", "0"],
        ["--rate", "NaN"],
        ["--rate", "-3"],
        ["--clients", "0"],
        ["--seconds", "0"],
        ["--seconds", "inf"],
        ["--warm-up", "-1"],
        ["--requests", "0"],
        ["--deadline-ms", "0"],
        ["--overload", "0"],
        ["--overload", "NaN"],
        ["--json", "/no/such/folder/report.json"],
    ] {
        let options = options.map(|option| option.to_owned());
        let all = ["bench".to_owned(), format!("{}={}", options[0], options[1])];
        let args = Cli::try_parse_from(all).expect("options").args;
        let error = args.check().expect_err("refused");
        assert!(error.to_string().contains(&options[0]), "{error}");
    }
    for options in [
        "--popularity even",
        "--tokens 9..3",
        "--prompt-words 0",
        "--noisy kjv=0",
        "--rate 3 --clients 4",
        "--rate 3 --overload 4",
    ] {
        let words = ["bench"].into_iter().chain(options.split(' '));
        assert!(Cli::try_parse_from(words).is_err(), "{options}");
    }
    let weights = |text| {
        Cli::try_parse_from(["bench", "--weights", text])
            .map(|cli| cli.args.engine.config().weights)
    };
    let found = weights("kjv=2,base=0.5").expect("weights");
    assert_eq!((found.len(), found["kjv"], found["base"]), (2, 2.0, 0.5));
    assert!(weights("kjv").is_err() && weights("kjv=much").is_err());
    // What only the engine knows is refused when its server is started: before any load.
    let dir = tempfile::tempdir().expect("directory");
    let store = dir.path().join("store").display().to_string();
    for (option, value, field) in [
        ("--kv-mib", "0", "kv_bytes"),
        ("--kv-mib", "1000000000", "no cache of"),
        ("--step-tokens", "0", "step_tokens"),
        ("--max-running", "0", "max_running"),
        ("--queue", "0", "queue"),
        ("--max-per-variant", "0", "max_per_variant"),
        ("--max-per-client", "0", "max_per_client"),
        ("--stall-seconds", "0", "stall"),
        ("--weights", "kjv=0", "weights"),
    ] {
        let args = args(&format!("--data-dir {store} {option} {value}"));
        let error = run(args).expect_err(option);
        assert!(format!("{error:#}").contains(field), "{option}: {error:#}");
    }
}
