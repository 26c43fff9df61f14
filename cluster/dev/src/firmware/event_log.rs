//! A made-up event log: what the firmware and the boot loader of a machine that boots quorated might record.
//!
//! Well-formed by TCG "PC Client Platform Firmware Profile r1.06", "Event Logging", and typical in its order: firmware
//! code, Secure Boot variables, boot options, option ROMs, separators, then a unified kernel image as systemd-stub
//! measures it. Every image in it is fictitious; none of it was recorded from a machine.
use anyhow::ensure;
use aws_lc_rs::digest::{SHA256, digest};
use quorate_attest::eventlog::{EV_IPL, EV_SEPARATOR, append_event, new_log};

const EV_S_CRTM_VERSION: u32 = 0x0000_0008;
const EV_EFI_VARIABLE_DRIVER_CONFIG: u32 = 0x8000_0001;
const EV_EFI_VARIABLE_BOOT: u32 = 0x8000_0002;
const EV_EFI_BOOT_SERVICES_APPLICATION: u32 = 0x8000_0003;
const EV_EFI_BOOT_SERVICES_DRIVER: u32 = 0x8000_0004;
const EV_EFI_GPT_EVENT: u32 = 0x8000_0006;
const EV_EFI_ACTION: u32 = 0x8000_0007;
const EV_EFI_PLATFORM_FIRMWARE_BLOB2: u32 = 0x8000_000a;
const EV_EFI_VARIABLE_AUTHORITY: u32 = 0x8000_00e0;

/// EFI_GLOBAL_VARIABLE and EFI_IMAGE_SECURITY_DATABASE_GUID, as they lie in memory (UEFI 2.10, 3.3 and 32.6.1).
const GLOBAL: [u8; 16] =
    [0x61, 0xdf, 0xe4, 0x8b, 0xca, 0x93, 0xd2, 0x11, 0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b, 0x8c];
const SECURITY: [u8; 16] =
    [0xcb, 0xb2, 0x19, 0xd7, 0x3a, 0x3d, 0x96, 0x45, 0xa3, 0xbc, 0xda, 0xd0, 0x0e, 0x67, 0x65, 0x6f];
/// Longest firmware version accepted.
const VERSION_MAX: usize = 64;

/// The log of a machine with firmware `version`. Another version gives another PCR 0.
pub fn demo(version: &str) -> anyhow::Result<Vec<u8>> {
    ensure!(
        !version.is_empty() && version.len() <= VERSION_MAX && version.bytes().all(|b| b.is_ascii_graphic()),
        "a firmware version has 1 to {VERSION_MAX} visible ASCII characters"
    );
    let mut log = Log(new_log());
    // PCR 0: the firmware itself.
    log.data(0, EV_S_CRTM_VERSION, &utf16(&format!("quorate made-up firmware {version}")));
    for volume in ["PEI", "DXE"] {
        let what = firmware_blob(volume, 0xff80_0000, 0x0040_0000);
        log.image(0, EV_EFI_PLATFORM_FIRMWARE_BLOB2, &format!("firmware volume {volume} {version}"), &what);
    }
    // PCR 7: Secure Boot is on, with these keys.
    for (vendor, name, value) in [
        (GLOBAL, "SecureBoot", &[1][..]),
        (GLOBAL, "PK", b"made-up platform key"),
        (GLOBAL, "KEK", b"made-up key exchange key"),
        (SECURITY, "db", b"made-up signature database"),
        (SECURITY, "dbx", b"made-up revocations"),
    ] {
        log.data(7, EV_EFI_VARIABLE_DRIVER_CONFIG, &variable(vendor, name, value));
    }
    log.separator(7);
    // PCR 1 and 2: configuration and option ROMs.
    log.data(1, EV_EFI_VARIABLE_BOOT, &variable(GLOBAL, "BootOrder", &[0, 0]));
    log.data(1, EV_EFI_VARIABLE_BOOT, &variable(GLOBAL, "Boot0000", b"made-up boot option: quorate"));
    log.image(2, EV_EFI_BOOT_SERVICES_DRIVER, "network card option ROM", &image_load("\\NIC.EFI"));
    // PCR 4: the boot begins.
    log.data(4, EV_EFI_ACTION, b"Calling EFI Application from Boot Option");
    for pcr in [0, 1, 2, 3, 4, 5, 6] {
        log.separator(pcr);
    }
    log.data(7, EV_EFI_VARIABLE_AUTHORITY, &variable(SECURITY, "db", b"made-up signer of the kernel image"));
    log.image(5, EV_EFI_GPT_EVENT, "partition table", b"made-up partition table");
    log.image(4, EV_EFI_BOOT_SERVICES_APPLICATION, "boot loader", &image_load("\\EFI\\BOOT\\BOOTX64.EFI"));
    log.image(4, EV_EFI_BOOT_SERVICES_APPLICATION, "kernel image", &image_load("\\EFI\\Linux\\quorate.efi"));
    // PCR 11: each section of the unified kernel image, its name (systemd-stub: with its final zero) and its content.
    for section in [".linux", ".osrel", ".cmdline", ".initrd", ".uname"] {
        let mut name = section.as_bytes().to_vec();
        name.push(0);
        log.data(11, EV_IPL, &name);
        log.image(11, EV_IPL, &format!("section {section}"), section.as_bytes());
    }
    log.data(5, EV_EFI_ACTION, b"Exit Boot Services Invocation");
    log.data(5, EV_EFI_ACTION, b"Exit Boot Services Returned with Success");
    Ok(log.0)
}

struct Log(Vec<u8>);

impl Log {
    /// An event whose digest is that of its data.
    fn data(&mut self, pcr: u8, kind: u32, data: &[u8]) {
        append_event(&mut self.0, pcr, kind, &sha256(data), data);
    }

    /// An event whose digest is that of an image, and whose data tells where that came from.
    fn image(&mut self, pcr: u8, kind: u32, image: &str, data: &[u8]) {
        append_event(&mut self.0, pcr, kind, &sha256(format!("made-up {image}").as_bytes()), data);
    }

    fn separator(&mut self, pcr: u8) {
        self.data(pcr, EV_SEPARATOR, &[0; 4]);
    }
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest(&SHA256, bytes).as_ref());
    out
}

/// A CHAR16 string with its final zero.
fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect()
}

/// UEFI_VARIABLE_DATA.
fn variable(vendor: [u8; 16], name: &str, value: &[u8]) -> Vec<u8> {
    let name: Vec<u16> = name.encode_utf16().collect();
    let mut data = vendor.to_vec();
    data.extend((name.len() as u64).to_le_bytes());
    data.extend((value.len() as u64).to_le_bytes());
    data.extend(name.into_iter().flat_map(u16::to_le_bytes));
    data.extend(value);
    data
}

/// UEFI_PLATFORM_FIRMWARE_BLOB2.
fn firmware_blob(name: &str, base: u64, length: u64) -> Vec<u8> {
    let mut data = vec![u8::try_from(name.len()).unwrap_or(u8::MAX)];
    data.extend(name.as_bytes());
    data.extend(base.to_le_bytes());
    data.extend(length.to_le_bytes());
    data
}

/// UEFI_IMAGE_LOAD_EVENT with a device path of one file (UEFI 2.10, 10.3.5.4).
fn image_load(path: &str) -> Vec<u8> {
    const MEDIA_FILE_PATH: [u8; 2] = [0x04, 0x04];
    const END: [u8; 4] = [0x7f, 0xff, 0x04, 0x00];
    let path = utf16(path);
    let node_length = u16::try_from(path.len() + 4).unwrap_or(u16::MAX);
    let mut device_path = MEDIA_FILE_PATH.to_vec();
    device_path.extend(node_length.to_le_bytes());
    device_path.extend(path);
    device_path.extend(END);
    let mut data = Vec::new();
    for number in [0x7e00_0000u64, 0x0010_0000, 0, device_path.len() as u64] {
        data.extend(number.to_le_bytes());
    }
    data.extend(device_path);
    data
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_attest::eventlog::{events, replay};

    #[test]
    fn the_log_is_well_formed_and_always_the_same() {
        let log = demo("1.0").unwrap();
        assert_eq!(log, demo("1.0").unwrap());
        assert!(events(&log).unwrap().len() > 30);
        let replay = replay(&log).unwrap();
        for pcr in [0, 1, 2, 3, 4, 5, 6, 7, 11] {
            assert_ne!(replay.value(pcr), [0; 32], "PCR {pcr}");
        }
    }

    #[test]
    fn another_firmware_changes_pcr_0_and_nothing_else() {
        let one = replay(&demo("1.0").unwrap()).unwrap();
        let other = replay(&demo("1.1").unwrap()).unwrap();
        let differing: Vec<u8> = (0..24).filter(|&pcr| one.value(pcr) != other.value(pcr)).collect();
        assert_eq!(differing, [0]);
        for bad in ["", "1 0", "é", &"1".repeat(65)] {
            assert!(demo(bad).is_err(), "{bad}");
        }
    }
}
