//! Progress while a run goes on: a bar on a terminal, plain lines elsewhere.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// How often a plain line is printed where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(2);

/// Says what the run is doing.
pub(crate) struct Progress {
    started: Instant,
    bar: Option<ProgressBar>,
    step: String,
    last_line: Instant,
    quiet: bool,
}

impl Progress {
    /// Starts the clock. With `quiet` nothing is printed (JSON goes to standard output).
    pub(crate) fn new(quiet: bool) -> Progress {
        let now = Instant::now();
        Progress { started: now, bar: None, step: String::new(), last_line: now, quiet }
    }

    /// Begins a step that is `length` units long (0: unknown).
    pub(crate) fn step(&mut self, name: &str, length: u64) {
        self.finish_bar();
        self.step = name.to_string();
        self.last_line = Instant::now();
        if self.quiet {
            return;
        }
        let bar = ProgressBar::new(length);
        let template = if length > 0 { "  {spinner} {prefix} {wide_bar} {msg}" } else { "  {spinner} {prefix} {msg}" };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("━╾─"));
        }
        bar.set_prefix(name.to_string());
        if bar.is_hidden() {
            self.line(name);
        } else {
            self.bar = Some(bar);
        }
    }

    /// Says how far the step is.
    pub(crate) fn at(&mut self, position: u64, message: &str) {
        if let Some(bar) = &self.bar {
            bar.set_position(position);
            bar.set_message(message.to_string());
        } else if self.last_line.elapsed() >= LINE_EVERY {
            self.last_line = Instant::now();
            self.line(&format!("{}: {message}", self.step));
        }
    }

    /// Says what came of the step, and ends it.
    pub(crate) fn done(&mut self, outcome: &str) {
        self.finish_bar();
        self.line(outcome);
    }

    /// One line with the time since the start.
    fn line(&self, text: &str) {
        if !self.quiet {
            say!("{:6.1} s  {text}", self.started.elapsed().as_secs_f64());
        }
    }

    fn finish_bar(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}
