//! Who is told how far an export is, and who may end it?

/// What takes time in an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Files of a model come from the hub.
    Download,
    /// Weights are written.
    Write,
}

/// Listens to an export. All methods have defaults: implement what you need.
pub trait Report {
    /// A phase begins; this many bytes are to come. A download has one for the small files and one for the weights.
    fn start(&mut self, _phase: Phase, _bytes: u64) {}

    /// The next file is begun.
    fn file(&mut self, _name: &str) {}

    /// So many more bytes have arrived, or are on their way to the disk.
    fn advance(&mut self, _bytes: u64) {}

    /// Whether the export should stop; it does so within a block of weights and leaves no bundle behind.
    fn interrupted(&self) -> bool {
        false
    }
}

/// Tells nobody, never interrupts.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Report for Silent {}
