//! Cores: how many the processor has that threads do not share.

/// Physical cores that this process may use. Two threads of one core get in each other's way in matrix
/// products.
pub(super) fn physical_cores() -> usize {
    let logical = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    siblings().map_or(logical, |cores| cores.clamp(1, logical))
}

/// Distinct sets of threads that share a core, where Linux says so.
fn siblings() -> Option<usize> {
    let mut cores = std::collections::BTreeSet::new();
    for entry in std::fs::read_dir("/sys/devices/system/cpu").ok()?.flatten() {
        let name = entry.file_name();
        let Some(number) = name.to_str().and_then(|name| name.strip_prefix("cpu")) else {
            continue;
        };
        if !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()) {
            let list = entry.path().join("topology/thread_siblings_list");
            // A processor that is offline has none.
            cores.extend(std::fs::read_to_string(list));
        }
    }
    (!cores.is_empty()).then_some(cores.len())
}
