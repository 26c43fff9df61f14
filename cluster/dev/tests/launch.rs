//! `quorate-launch` with a real software TPM: what a node's quote shows after each kind of start.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests")]
use quorate_attest::{eventlog, reference_values::ReferenceValues};
use quorate_attest_tpm::Tpm;
use std::{
    fs,
    net::TcpListener,
    path::PathBuf,
    process::{Command, Output, Stdio},
};

const PCRS: [u8; 5] = [0, 2, 4, 7, 11];

struct Machine {
    dir: tempfile::TempDir,
    port: String,
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.tpm("kill");
    }
}

impl Machine {
    /// A machine that is off; `None` when there is no swtpm.
    fn new() -> Option<Self> {
        let missing = |tool: &str| {
            Command::new(tool).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err()
        };
        if missing("swtpm") || missing("swtpm_setup") {
            eprintln!(
                "SKIPPED: swtpm and swtpm_setup are not installed; NOTHING about the launcher was tested"
            );
            return None;
        }
        let machine = Self { dir: tempfile::tempdir().unwrap(), port: free_port_pair().to_string() };
        let (tpm, ca) = (machine.path("tpm"), machine.path("ca"));
        let setup = ["tpm", "setup", "--dir", &tpm, "--ca-dir", &ca, "--name", "n1"];
        assert_eq!(said(&launch(&setup)), "tpm: made\n");
        assert_eq!(said(&launch(&setup)), "tpm: exists already\n");
        said(&launch(&["event-log", "--out", &machine.path("firmware.log")]));
        fs::copy("/bin/sh", machine.path("quorated")).unwrap();
        Some(machine)
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    fn tpm(&self, task: &str) -> Output {
        launch(&["tpm", task, "--dir", &self.path("tpm"), "--port", &self.port])
    }

    /// Starts the "node", which ends with status 7 at once. Returns what the launcher said.
    fn start_node(&self, options: &[&str]) -> String {
        let paths = ["tpm", "firmware.log", "measured.log", "quorated"].map(|name| self.path(name));
        let [tpm, firmware, measured, program] = paths.each_ref().map(String::as_str);
        let mut arguments = vec!["node", "--tpm-dir", tpm, "--port", &self.port];
        arguments.extend(["--event-log", firmware, "--log-out", measured]);
        arguments.extend(options);
        arguments.extend(["--", program, "-c", "exit 7"]);
        let output = launch(&arguments);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(7), "{text}");
        assert!(text.contains("measurements prove nothing about this machine"), "{text}");
        text
    }

    fn pcrs(&self) -> Vec<(u8, [u8; 32])> {
        let mut tpm = Tpm::open(&format!("swtpm:host=127.0.0.1,port={}", self.port)).unwrap();
        tpm.pcr_values(&PCRS).unwrap()
    }

    /// PCRs whose values the reference values do not allow.
    fn not_allowed(&self, allowed: &ReferenceValues) -> Vec<u8> {
        self.pcrs()
            .into_iter()
            .filter(|(pcr, value)| !allowed.pcrs[pcr].contains(value))
            .map(|(pcr, _)| pcr)
            .collect()
    }

    /// PCRs that the measured log does not explain.
    fn unexplained(&self) -> Vec<u8> {
        let replay = eventlog::replay(&fs::read(self.path("measured.log")).unwrap()).unwrap();
        self.pcrs()
            .into_iter()
            .filter(|(pcr, value)| replay.value(*pcr) != *value)
            .map(|(pcr, _)| pcr)
            .collect()
    }

    fn reference_values(&self) -> ReferenceValues {
        let (log, binary) = (self.path("firmware.log"), self.path("quorated"));
        toml::from_str(&said(&launch(&["reference-values", "--event-log", &log, "--binary", &binary])))
            .unwrap()
    }

    fn tamper_with_binary(&self) {
        let mut binary = fs::read(self.path("quorated")).unwrap();
        binary.push(0);
        fs::write(self.path("quorated"), binary).unwrap();
    }
}

fn launch(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_quorate-launch")).args(arguments).output().unwrap()
}

fn said(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn free_port_pair() -> u16 {
    (0..100)
        .find_map(|_| {
            let first = TcpListener::bind("127.0.0.1:0").unwrap();
            let port = first.local_addr().unwrap().port();
            (port < u16::MAX && TcpListener::bind(("127.0.0.1", port + 1)).is_ok()).then_some(port)
        })
        .unwrap()
}

#[test]
fn a_boot_shows_the_reference_values_until_the_power_goes() {
    let Some(machine) = Machine::new() else { return };
    let allowed = machine.reference_values();
    assert!(machine.start_node(&[]).contains("played"));
    let booted = machine.pcrs();
    assert_eq!(machine.not_allowed(&allowed), []);
    assert_eq!(machine.unexplained(), []);

    // A process restart is not a machine reset.
    assert!(machine.start_node(&[]).contains("booted already"));
    assert_eq!(machine.pcrs(), booted);

    assert_eq!(said(&machine.tpm("power-cycle")), "tpm: off and on again\n");
    assert_eq!(machine.pcrs(), PCRS.map(|pcr| (pcr, [0; 32])));
    assert!(machine.start_node(&[]).contains("played"));
    assert_eq!(machine.pcrs(), booted);

    assert_eq!(said(&machine.tpm("kill")), "tpm: power cut\n");
    assert_eq!(said(&machine.tpm("kill")), "tpm: off already\n");
    assert!(Tpm::open(&format!("swtpm:host=127.0.0.1,port={}", machine.port)).is_err());
    assert_eq!(said(&machine.tpm("start")), "tpm: on\n");
    assert_eq!(said(&machine.tpm("start")), "tpm: on already\n");
    assert!(machine.start_node(&[]).contains("played"));
    assert_eq!(machine.pcrs(), booted);
    assert_eq!(said(&machine.tpm("stop")), "tpm: off\n");
    assert_eq!(said(&machine.tpm("stop")), "tpm: off already\n");
}

#[test]
fn a_tampered_binary_shows_in_pcr_11_after_the_next_boot() {
    let Some(machine) = Machine::new() else { return };
    let allowed = machine.reference_values();
    machine.start_node(&[]);
    machine.tamper_with_binary();
    // Not before, as on a real machine; but the launcher says so.
    assert!(machine.start_node(&[]).contains("another firmware or binary"));
    assert_eq!(machine.not_allowed(&allowed), []);

    said(&machine.tpm("power-cycle"));
    machine.start_node(&[]);
    assert_eq!(machine.not_allowed(&allowed), [11]);
    assert_eq!(machine.unexplained(), [], "the log is honest about the other binary");
    let tampered = machine.reference_values();
    assert_eq!(machine.not_allowed(&tampered), []);
}

#[test]
fn another_firmware_shows_in_pcr_0_and_an_unlogged_extension_in_no_log() {
    let Some(machine) = Machine::new() else { return };
    let allowed = machine.reference_values();
    said(&launch(&["event-log", "--firmware", "6.66", "--out", &machine.path("firmware.log")]));
    machine.start_node(&[]);
    assert_eq!(machine.not_allowed(&allowed), [0]);
    assert_eq!(machine.unexplained(), []);

    said(&machine.tpm("power-cycle"));
    machine.start_node(&["--danger-extra-extend", "4"]);
    assert_eq!(machine.unexplained(), [4]);
    assert!(machine.start_node(&[]).contains("PCRs [4] are not what"));
}

#[test]
fn a_stale_process_id_hits_nobody() {
    let Some(machine) = Machine::new() else { return };
    machine.start_node(&[]);
    // A stale process id, of a process that is not this TPM.
    fs::write(PathBuf::from(machine.path("tpm")).join("swtpm.pid"), std::process::id().to_string()).unwrap();
    assert_eq!(said(&machine.tpm("kill")), "tpm: off already\n");
    let start = machine.tpm("start");
    assert!(!start.status.success(), "the port is taken by the TPM whose process id was lost");
    let pid = listening_swtpm(&machine.path("tpm"));
    fs::write(PathBuf::from(machine.path("tpm")).join("swtpm.pid"), pid).unwrap();
    assert_eq!(said(&machine.tpm("kill")), "tpm: power cut\n");
}

/// The process id of the swtpm that serves this folder.
fn listening_swtpm(dir: &str) -> String {
    let state = format!("dir={}/state", fs::canonicalize(dir).unwrap().display());
    fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| {
            let entry = entry.unwrap();
            let command_line = fs::read(entry.path().join("cmdline")).ok()?;
            let mine = command_line.split(|b| *b == 0).any(|argument| argument == state.as_bytes());
            mine.then(|| entry.file_name().into_string().unwrap())
        })
        .next()
        .unwrap()
}
