//! A region process as the harness holds it: started, asked, killed.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use super::node::{Ask, Load, Loaded, Reply, Shipping, Status, disks};

/// Between two looks at what takes long.
pub(super) const LONG: Duration = Duration::from_millis(10);
/// How long anything may take that is waited for.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// A region in a process of its own. Dropping it kills it.
pub(crate) struct Remote {
    name: &'static str,
    peer: &'static str,
    home: PathBuf,
    /// Where it listens, once it has: the same again after a restart.
    address: Option<SocketAddr>,
    /// Mebibytes of blocks that it keeps in memory.
    hot: u32,
    process: Option<Process>,
}

struct Process {
    child: Child,
    input: ChildStdin,
    /// Its lines, as a thread reads them that ends with it: a pipe by itself would be waited for for ever.
    output: Receiver<std::io::Result<String>>,
}

impl Process {
    /// Starts it.
    fn start(command: &mut Command) -> Result<Process, String> {
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = child.map_err(|error| format!("cannot be started: {error}"))?;
        let (input, output) = (child.stdin.take(), child.stdout.take());
        let (Some(input), Some(pipe)) = (input, output) else { return Err("has no pipes".into()) };
        let (lines, output) = channel();
        let read = move || {
            for line in BufReader::new(pipe).lines() {
                if lines.send(line).is_err() {
                    return;
                }
            }
        };
        let reader = std::thread::Builder::new().name("answers".into()).spawn(read);
        reader.map_err(|error| format!("cannot be read from: {error}"))?;
        Ok(Process { child, input, output })
    }

    /// Says a line and waits for the answer.
    fn ask(&mut self, line: &str, patience: Duration) -> Result<String, String> {
        writeln!(self.input, "{line}").map_err(|error| format!("is gone: {error}"))?;
        match self.output.recv_timeout(patience) {
            Ok(answer) => answer.map_err(|error| format!("is gone: {error}")),
            Err(RecvTimeoutError::Timeout) => Err(format!("did not answer in {} s: {line}", patience.as_secs())),
            Err(RecvTimeoutError::Disconnected) => Err("is gone: it ended".into()),
        }
    }
}

impl Remote {
    /// Starts a region below `home`; a secondary listens.
    ///
    /// # Errors
    /// A message when it does not come up.
    pub(crate) fn start(
        name: &'static str,
        peer: &'static str,
        home: PathBuf,
        listens: bool,
    ) -> Result<Remote, String> {
        let address = listens.then(|| SocketAddr::from(([127, 0, 0, 1], 0)));
        let mut remote = Remote { name, peer, home, address, hot: 64, process: None };
        remote.up()?;
        Ok(remote)
    }

    /// Starts the process again.
    ///
    /// # Errors
    /// A message when it does not come up.
    pub(crate) fn up(&mut self) -> Result<(), String> {
        let program = std::env::current_exe().map_err(|error| error.to_string())?;
        let mut command = Command::new(program);
        command.args(["region", "--name", self.name, "--peer", self.peer, "--hot", &self.hot.to_string()]);
        if let Some(address) = self.address {
            command.arg("--listen").arg(address.to_string());
        }
        let process = Process::start(command.args(disks(&self.home)));
        self.process = Some(process.map_err(|error| format!("region {} {error}", self.name))?);
        self.address = self.status()?.address;
        Ok(())
    }

    /// Where it listens.
    ///
    /// # Errors
    /// A message when it does not.
    pub(crate) fn address(&self) -> Result<SocketAddr, String> {
        self.address.ok_or_else(|| format!("region {} does not listen", self.name))
    }

    /// Where its disks are.
    pub(crate) fn home(&self) -> &Path {
        &self.home
    }

    /// Asks it something and waits for its answer.
    ///
    /// # Errors
    /// Its message, that it is gone, or that it does not answer.
    pub(crate) fn ask(&mut self, ask: &Ask) -> Result<Status, String> {
        let name = self.name;
        let process = self.process.as_mut().ok_or_else(|| format!("region {name} was stopped"))?;
        let line = serde_json::to_string(ask).map_err(|error| error.to_string())?;
        let answer = process.ask(&line, PATIENCE).map_err(|error| format!("region {name} {error}"))?;
        let reply: Reply = serde_json::from_str(&answer)
            .map_err(|error| format!("region {name} does not answer in its language: {error}: {answer}"))?;
        reply.map_err(|message| format!("region {name}: {message}"))
    }

    /// How it stands.
    ///
    /// # Errors
    /// As [`Remote::ask`].
    pub(crate) fn status(&mut self) -> Result<Status, String> {
        self.ask(&Ask::Status)
    }

    /// How its link stands.
    ///
    /// # Errors
    /// As [`Remote::ask`]; when it has none.
    pub(crate) fn shipping(&mut self) -> Result<Shipping, String> {
        self.status()?.link.ok_or_else(|| format!("region {} does not ship", self.name))
    }

    /// Waits until `done` says so.
    ///
    /// # Errors
    /// As [`Remote::ask`]; when it takes too long.
    pub(crate) fn until(&mut self, what: &str, mut done: impl FnMut(&Status) -> bool) -> Result<Duration, String> {
        let start = Instant::now();
        loop {
            let status = self.status()?;
            if done(&status) {
                return Ok(start.elapsed());
            }
            if start.elapsed() > PATIENCE {
                return Err(format!("{what} did not happen in {} s: {status:?}", PATIENCE.as_secs()));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Whether `done` comes to say so in the time that anything may take.
    ///
    /// # Errors
    /// As [`Remote::ask`].
    pub(crate) fn comes_to(&mut self, mut done: impl FnMut(&Status) -> bool) -> Result<bool, String> {
        let start = Instant::now();
        while !done(&self.status()?) {
            if start.elapsed() > PATIENCE {
                return Ok(false);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(true)
    }

    /// Waits until everything that is committed now has arrived.
    ///
    /// # Errors
    /// As [`Remote::until`].
    pub(crate) fn until_shipped(&mut self) -> Result<Duration, String> {
        let committed = self.status()?.committed;
        let mut early = 0..20;
        self.until("arrival of everything", |status| {
            let arrived = status.link.as_ref().is_some_and(|link| link.position >= committed);
            // What takes long is not disturbed by being asked.
            if !arrived && early.next().is_none() {
                std::thread::sleep(LONG);
            }
            arrived
        })
    }

    /// Commits a load to its end.
    ///
    /// # Errors
    /// As [`Remote::until`]; when it was not committed as a whole.
    pub(crate) fn load(&mut self, load: &Load, mut seen: impl FnMut(&Status)) -> Result<Loaded, String> {
        self.ask(&Ask::Load(load.clone()))?;
        let mut last = None;
        self.until("the load's end", |status| {
            seen(status);
            last.clone_from(&status.load);
            std::thread::sleep(Duration::from_millis(19));
            status.load.as_ref().is_some_and(|load| !load.running)
        })?;
        last.unwrap_or_default().whole(load).map_err(|message| format!("region {}: {message}", self.name))
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            // It may have ended by itself.
            drop(process.child.kill());
            drop(process.child.wait());
        }
    }

    /// Closes the region in order and starts it again, to keep so many mebibytes of blocks in memory.
    ///
    /// # Errors
    /// As [`Remote::quit`] and [`Remote::up`].
    pub(crate) fn restart(&mut self, hot: u32) -> Result<(), String> {
        self.close()?;
        self.hot = hot;
        self.up()
    }

    /// Closes the region in order.
    ///
    /// # Errors
    /// As [`Remote::ask`]; when it ended otherwise than well.
    pub(crate) fn quit(mut self) -> Result<(), String> {
        self.close()
    }

    fn close(&mut self) -> Result<(), String> {
        self.ask(&Ask::Quit)?;
        let Some(mut process) = self.process.take() else { return Ok(()) };
        let ended = process.child.wait().map_err(|error| error.to_string())?;
        if ended.success() { Ok(()) } else { Err(format!("region {} ended with {ended}", self.name)) }
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        self.kill();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_does_not_answer_is_an_error_and_not_waited_for_for_ever() {
        let mut silent = Process::start(Command::new("sleep").arg("60")).expect("started");
        let error = silent.ask("anything", Duration::from_millis(50)).expect_err("it says nothing");
        silent.child.kill().expect("killed");
        silent.child.wait().expect("waited for");
        assert!(error.contains("did not answer"), "{error}");
        let mut echo = Process::start(&mut Command::new("cat")).expect("started");
        assert_eq!(echo.ask("anything", PATIENCE).as_deref(), Ok("anything"));
        echo.child.kill().expect("killed");
        echo.child.wait().expect("waited for");
        assert!(echo.ask("anything", PATIENCE).expect_err("it is dead").contains("is gone"));
    }
}
