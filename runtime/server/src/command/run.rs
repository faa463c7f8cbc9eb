//! The work of `fvlm-serve`: opens the bundle, listens, and ends when it is told to.

use crate::command::output;
use crate::command::plan::Plan;
use crate::schedule::Scheduler;
use crate::{About, App, tls};
use programs::signals::{self, Signal};
use programs::stdout;
use runtime::cli::hint;
use runtime::{EngineError, Model};
use std::io;
use std::net::TcpListener;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::watch;

/// An error was said.
const FAILED: u8 = 2;

/// Threads that read requests and write answers.
const THREADS: usize = 2;

/// Threads that decode images, and wait for names and files.
const BLOCKING_THREADS: usize = 16;

/// Why there is no server.
enum Failure {
    Engine(EngineError),
    Other(String),
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Failure {
        Failure::Engine(error)
    }
}

/// Serves until a signal comes; the exit code, where none did.
pub(crate) fn run(plan: &Plan) -> u8 {
    let ended = Arc::new(Mutex::new(None));
    let failure = match serve(plan, &ended) {
        Ok(()) => {
            let signal = *ended.lock().unwrap_or_else(PoisonError::into_inner);
            match signal {
                Some(signal) => Signal::end(signal),
                None => return FAILED,
            }
        }
        Err(failure) => failure,
    };
    match failure {
        Failure::Engine(error) => output::complain(&error.to_string(), hint(&error, &plan.model).as_deref()),
        Failure::Other(problem) => output::complain(&problem, None),
    }
    FAILED
}

fn serve(plan: &Plan, ended: &Arc<Mutex<Option<Signal>>>) -> Result<(), Failure> {
    let tls = match &plan.tls {
        Some((cert, key)) => Some(tls::config(cert, key).map_err(|error| Failure::Other(error.to_string()))?),
        None => None,
    };
    // Before the model, which takes longer to open than it takes to say that the port is somebody else's.
    let listener = listen(plan)?;
    let local = listener.local_addr();
    let port = local.map_err(|error| Failure::Other(error.to_string()))?.port();
    let model = open(plan)?;
    let about = About::of(&model, &plan.model, plan.name.clone())?;
    let words = Box::new(model.prompter()?.tokenizer().clone());
    let name = about.name.clone();
    let no_threads = |error: io::Error| Failure::Other(format!("cannot start threads: {error}"));
    let worker = Arc::new(Scheduler::start(model, plan.limits).map_err(no_threads)?);
    let app = Arc::new(App::new(worker, words, about, plan.settings.clone()));
    let threads = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(THREADS)
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_name("http")
        .enable_all()
        .build()
        .map_err(no_threads)?;
    let (stop, stopped) = watch::channel(false);
    let first = Arc::clone(ended);
    signals::on(&Signal::ALL, move |signal| {
        let before = first
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .replace(signal);
        if before.is_some() || stop.send(true).is_err() {
            signal.end();
        }
    });
    let scheme = if tls.is_some() { "https" } else { "http" };
    let address = format!("{scheme}://{}:{port}", in_address(&plan.host));
    tell(
        plan,
        &format!(
            "`{name}` answers at {address}, OpenAI's interface at {address}/v1, Ollama's at {address}/api"
        ),
    );
    match stdout::write(&format!("{address}\n")) {
        Err(error) if !stdout::is_had_enough(&error) => {
            return Err(Failure::Other(format!("cannot write the address: {error}")));
        }
        _written_or_had_enough => {}
    }
    let grace = plan.grace;
    threads
        .block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            crate::serve(listener, tls, app, stopped, grace).await;
            Ok(())
        })
        .map_err(|error: io::Error| Failure::Other(format!("cannot listen: {error}")))?;
    // What still fetches or decodes has nobody to answer.
    threads.shutdown_background();
    Ok(())
}

fn open(plan: &Plan) -> Result<Model, EngineError> {
    for warning in plan.warnings() {
        tell(plan, &warning);
    }
    let model = Model::open(&plan.model, &plan.options)?;
    if plan.verify {
        model.verify(&|_bytes| ())?;
    }
    let ready = model.ready();
    for notice in model.notices() {
        tell(plan, &notice);
    }
    ready?;
    Ok(model)
}

fn tell(plan: &Plan, text: &str) {
    if !plan.quiet {
        output::tell(text);
    }
}

/// The first of the host's addresses that can be had.
fn listen(plan: &Plan) -> Result<TcpListener, Failure> {
    let listener = TcpListener::bind(plan.addresses.as_slice());
    let listener = listener.and_then(|listener| {
        listener.set_nonblocking(true)?;
        Ok(listener)
    });
    listener.map_err(|error| {
        let port = plan.addresses.first().map_or(0, std::net::SocketAddr::port);
        Failure::Other(format!("cannot listen on {} port {port}: {error}", plan.host))
    })
}

/// A host as it stands in an address.
fn in_address(host: &str) -> String {
    if host.contains(':') && !host.starts_with('[') {
        format!("[{host}]")
    } else {
        host.to_owned()
    }
}
