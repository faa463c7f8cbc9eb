//! Core ML through its Objective-C interface: loading, state, prediction. No one of us could run this; it is kept small, and its
//! types are checked on every change (`scripts/check`). `scripts/mac_check` runs it on a Mac.
//!
//! Every call is unsafe because the bindings cannot know Objective-C's rules; each block says which one it relies on.

#![expect(unsafe_code, reason = "Objective-C: the bindings mark every method unsafe")]

use super::{StatefulDecoder, StatefulModel, packages, unavailable};
use crate::backend::{CoreMlUnits, Decoder, Model, Provider, VisionEncoder};
use crate::error::BackendError;
use models::bundle::Bundle;
use ndarray::{Array1, Array2, ArrayD, ArrayView2, ArrayView4};
use objc2::AnyThread as _;
use objc2::available;
use objc2::rc::{Retained, autoreleasepool};
use objc2::runtime::{AnyObject, ProtocolObject};
use objc2_core_ml::{
    MLComputeUnits, MLDictionaryFeatureProvider, MLFeatureProvider, MLFeatureValue, MLModel,
    MLModelConfiguration, MLMultiArray, MLMultiArrayDataType, MLState,
};
use objc2_foundation::{NSArray, NSDictionary, NSError, NSNumber, NSString, NSURL};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Whether this system has what packages need: older ones do not know the messages below.
pub(super) fn check() -> Result<(), BackendError> {
    if available!(ios = 18.0, macos = 15.0) {
        Ok(())
    } else {
        Err(unavailable(
            "Core ML has states and functions since macOS 15 and iOS 18",
        ))
    }
}

/// The image encoder of a model's packages.
pub(super) fn vision_encoder(model: &Model<'_>) -> Result<Arc<dyn VisionEncoder>, BackendError> {
    let package = Package::open(model, &packages(model)?.vision_encoder)?;
    Ok(Arc::new(Encoder {
        function: Mutex::new(package.function(None)?),
        path: package.path,
    }))
}

/// The decoder of a model's packages.
pub(super) fn decoder(model: &Model<'_>) -> Result<Arc<dyn Decoder>, BackendError> {
    let packages = packages(model)?;
    let package = Package::open(model, &packages.decoder)?;
    let mut functions = BTreeMap::from([(1, package.function(Some("step"))?)]);
    for new in &packages.prefill {
        functions.insert(*new, package.function(Some(&format!("prefill_{new}")))?);
    }
    let hidden = model.bundle.prompt.hidden_size;
    let path = package.path.clone();
    let stateful = Stateful {
        functions: Mutex::new(functions),
        path: path.clone(),
    };
    let kv = &model.bundle.kv;
    Ok(Arc::new(StatefulDecoder::new(
        stateful, path, packages, hidden, kv,
    )))
}

/// A compiled package.
struct Package {
    /// The package in the bundle, for messages.
    path: PathBuf,
    /// The compiled model.
    compiled: Compiled,
    units: MLComputeUnits,
}

/// A compiled model, and the folder that it is in if no cache has it.
#[derive(Clone)]
struct Compiled {
    url: Retained<NSURL>,
    temporary: Option<Arc<Temporary>>,
}

/// A folder that Core ML made, and leaves to its caller to remove.
#[derive(Debug)]
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // The system empties its temporary folders too, some day.
        drop(std::fs::remove_dir_all(&self.0));
    }
}

impl Package {
    /// Compiles a package, unless the cache has it compiled.
    fn open(model: &Model<'_>, package: &str) -> Result<Package, BackendError> {
        let path = model.directory.join(package);
        let options = &model.options.coreml;
        let units = match options.units {
            CoreMlUnits::All => MLComputeUnits::All,
            CoreMlUnits::CpuAndNe => MLComputeUnits::CPUAndNeuralEngine,
            CoreMlUnits::CpuAndGpu => MLComputeUnits::CPUAndGPU,
            CoreMlUnits::Cpu => MLComputeUnits::CPUOnly,
        };
        let cached = options
            .cache
            .as_ref()
            .map(|cache| cache.join(cache_name(model.bundle, package)));
        let compiled = match &cached {
            Some(cached) if cached.is_dir() => Compiled {
                url: url(cached),
                temporary: None,
            },
            _absent => compile(&path, cached.as_deref())?,
        };
        Ok(Package {
            path,
            compiled,
            units,
        })
    }

    /// Loads one of its functions, or its only one.
    fn function(&self, name: Option<&str>) -> Result<Function, BackendError> {
        // SAFETY: plain messages to an object that was just made; the name is copied.
        let configuration = unsafe {
            let configuration = MLModelConfiguration::new();
            configuration.setComputeUnits(self.units);
            if let Some(name) = name {
                configuration.setFunctionName(Some(&NSString::from_str(name)));
            }
            configuration
        };
        // SAFETY: both arguments live until it returns.
        let model = unsafe {
            MLModel::modelWithContentsOfURL_configuration_error(&self.compiled.url, &configuration)
        };
        let model = model.map_err(|error| {
            let function = name
                .map(|name| format!("function `{name}`: "))
                .unwrap_or_default();
            self.refuse(format!("{function}{}", words(&error)))
        })?;
        Ok(Function {
            path: self.path.clone(),
            model,
            _temporary: self.compiled.temporary.clone(),
        })
    }

    fn refuse(&self, reason: String) -> BackendError {
        refused(&self.path, reason)
    }
}

fn refused(path: &Path, reason: String) -> BackendError {
    BackendError::Graph {
        provider: Provider::CoreMlNative,
        path: path.to_owned(),
        reason,
    }
}

/// Compiles a package into a temporary directory, and moves the result to where a cache wants it.
fn compile(path: &Path, cached: Option<&Path>) -> Result<Compiled, BackendError> {
    // SAFETY: the argument lives until it returns.
    #[expect(
        deprecated,
        reason = "the other one wants a block and a thread that waits for it"
    )]
    let compiled = unsafe { MLModel::compileModelAtURL_error(&url(path)) };
    let compiled = compiled.map_err(|error| refused(path, words(&error)))?;
    let Some(temporary) = compiled.path() else {
        return Ok(Compiled {
            url: compiled,
            temporary: None,
        });
    };
    let temporary = PathBuf::from(temporary.to_string());
    if let Some(cached) = cached {
        let parent = cached.parent().map_or(Ok(()), std::fs::create_dir_all);
        // On another volume, or where another process was first: the temporary one does as well.
        if parent.and_then(|()| std::fs::rename(&temporary, cached)).is_ok() {
            return Ok(Compiled {
                url: url(cached),
                temporary: None,
            });
        }
    }
    Ok(Compiled {
        url: compiled,
        temporary: Some(Arc::new(Temporary(temporary))),
    })
}

/// A name that no other package has: its files' hashes are in the contract.
fn cache_name(bundle: &Bundle, package: &str) -> String {
    let stem = Path::new(package)
        .file_stem()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let files = bundle.files.iter().filter(|file| {
        file.path
            .strip_prefix(package)
            .is_some_and(|rest| rest.starts_with('/') && !rest.ends_with("Manifest.json"))
    });
    let hashes: Vec<&str> = files
        .map(|file| file.sha256.get(..16).unwrap_or_default())
        .collect();
    format!("{stem}-{}.mlmodelc", hashes.join("-"))
}

fn url(path: &Path) -> Retained<NSURL> {
    let path = NSString::from_str(&path.to_string_lossy());
    NSURL::fileURLWithPath(&path)
}

fn words(error: &NSError) -> String {
    error.localizedDescription().to_string()
}

/// A loaded function.
struct Function {
    path: PathBuf,
    model: Retained<MLModel>,
    /// Goes after the model.
    _temporary: Option<Arc<Temporary>>,
}

/// An input's elements.
enum Elements<'a> {
    Float32(&'a [f32]),
    Int32(i32),
}

impl Function {
    /// One prediction; the elements of one output.
    fn predict(
        &self,
        inputs: &[(&str, Elements<'_>, &[usize])],
        output: &str,
        state: Option<&MLState>,
    ) -> Result<ArrayD<f32>, BackendError> {
        // What Core ML makes on the way is freed when this ends, not when the thread does.
        autoreleasepool(|_| {
            self.predict_in_pool(inputs, output, state)
                .map_err(|reason| self.failed(reason))
        })
    }

    fn predict_in_pool(
        &self,
        inputs: &[(&str, Elements<'_>, &[usize])],
        output: &str,
        state: Option<&MLState>,
    ) -> Result<ArrayD<f32>, String> {
        let mut names = Vec::with_capacity(inputs.len());
        let mut values: Vec<Retained<AnyObject>> = Vec::with_capacity(inputs.len());
        for (name, elements, shape) in inputs {
            let array = match elements {
                Elements::Float32(floats) => filled(floats, shape, MLMultiArrayDataType::Float32)?,
                Elements::Int32(number) => filled(&[*number], shape, MLMultiArrayDataType::Int32)?,
            };
            names.push(NSString::from_str(name));
            // SAFETY: a plain message; the value keeps the array.
            let value = unsafe { MLFeatureValue::featureValueWithMultiArray(&array) };
            values.push(Retained::into_super(Retained::into_super(value)));
        }
        let names: Vec<&NSString> = names.iter().map(|name| &**name).collect();
        let dictionary = NSDictionary::from_retained_objects(&names, &values);
        // SAFETY: keys are strings and values are feature values, as the method wants.
        let features = unsafe {
            MLDictionaryFeatureProvider::initWithDictionary_error(
                MLDictionaryFeatureProvider::alloc(),
                &dictionary,
            )
        };
        let features = features.map_err(|error| words(&error))?;
        let features: &ProtocolObject<dyn MLFeatureProvider> = ProtocolObject::from_ref(&*features);
        // SAFETY: arguments live until it returns; a state is used by one thread, for its owner lends it mutably.
        let outputs = unsafe {
            match state {
                Some(state) => self
                    .model
                    .predictionFromFeatures_usingState_error(features, state),
                None => self.model.predictionFromFeatures_error(features),
            }
        };
        let outputs = outputs.map_err(|error| words(&error))?;
        // SAFETY: plain messages.
        let value = unsafe { outputs.featureValueForName(&NSString::from_str(output)) };
        let array = value.and_then(|value| unsafe { value.multiArrayValue() });
        read(&*array.ok_or_else(|| format!("there is no array `{output}` among the outputs"))?)
    }

    fn failed(&self, reason: String) -> BackendError {
        BackendError::Run {
            path: self.path.clone(),
            reason,
        }
    }
}

/// A new array, rows without gaps.
fn array(shape: &NSArray<NSNumber>, kind: MLMultiArrayDataType) -> Result<Retained<MLMultiArray>, String> {
    // SAFETY: the shape lives until it returns. The contents are not initialised: the callers write all of them.
    let array = unsafe { MLMultiArray::initWithShape_dataType_error(MLMultiArray::alloc(), shape, kind) };
    array.map_err(|error| words(&error))
}

fn filled<T: Copy>(
    elements: &[T],
    shape: &[usize],
    kind: MLMultiArrayDataType,
) -> Result<Retained<MLMultiArray>, String> {
    if shape.iter().product::<usize>() != elements.len() {
        return Err(format!(
            "{} elements for an array of shape {shape:?}",
            elements.len()
        ));
    }
    let lengths: Vec<Retained<NSNumber>> = shape.iter().map(|length| NSNumber::new_usize(*length)).collect();
    let array = array(&NSArray::from_retained_slice(&lengths), kind)?;
    // SAFETY: the array is new, contiguous, of `elements.len()` elements of `T`, and nobody else has it.
    unsafe {
        #[expect(deprecated, reason = "the other one wants a block")]
        let data = array.dataPointer().cast::<T>();
        std::ptr::copy_nonoverlapping(elements.as_ptr(), data.as_ptr(), elements.len());
    }
    Ok(array)
}

/// A copy of a float32 array, whatever gaps it has.
fn read(from: &MLMultiArray) -> Result<ArrayD<f32>, String> {
    // SAFETY: plain messages; the copy has the same shape and no gaps, and `count` elements of float32 in the end.
    let (lengths, values) = unsafe {
        if from.dataType() != MLMultiArrayDataType::Float32 {
            return Err(format!(
                "an output has elements of type {:?}, expected float32",
                from.dataType()
            ));
        }
        let plain = array(&from.shape(), MLMultiArrayDataType::Float32)?;
        from.transferToMultiArray(&plain);
        let count = usize::try_from(plain.count()).map_err(|_| "an output of negative length".to_owned())?;
        #[expect(deprecated, reason = "the other one wants a block")]
        let data = plain.dataPointer().cast::<f32>();
        let values = std::slice::from_raw_parts(data.as_ptr(), count).to_vec();
        (plain.shape(), values)
    };
    let lengths = lengths.to_vec();
    let shape: Vec<usize> = lengths.iter().map(|length| length.as_usize()).collect();
    ArrayD::from_shape_vec(shape, values).map_err(|error| error.to_string())
}

// SAFETY: Core ML lets any thread use a model, one at a time; every function here is behind a lock.
unsafe impl Send for Function {}

/// The image encoder.
struct Encoder {
    function: Mutex<Function>,
    path: PathBuf,
}

impl VisionEncoder for Encoder {
    fn encode(&self, pixels: ArrayView4<'_, f32>) -> Result<Array2<f32>, BackendError> {
        let failed = |reason: String| BackendError::Run {
            path: self.path.clone(),
            reason,
        };
        let values = pixels
            .as_slice()
            .ok_or_else(|| failed("`pixel_values` has gaps".to_owned()))?;
        let input = ("pixel_values", Elements::Float32(values), pixels.shape());
        let function = self.function.lock().unwrap_or_else(PoisonError::into_inner);
        let found = function.predict(&[input], "image_features", None)?;
        let shape = found.shape().to_vec();
        let &[1, rows, hidden] = shape.as_slice() else {
            return Err(failed(format!(
                "`image_features` has shape {shape:?}, expected [1, rows, hidden]"
            )));
        };
        let found = found.into_shape_with_order((rows, hidden));
        found.map_err(|error| failed(error.to_string()))
    }
}

/// The functions of a decoder.
struct Stateful {
    functions: Mutex<BTreeMap<usize, Function>>,
    path: PathBuf,
}

/// What the functions of a decoder share of one sequence.
struct State(Retained<MLState>);

// SAFETY: as for `Function`: a state is used together with the functions only, which are behind a lock.
unsafe impl Send for State {}

impl StatefulModel for Stateful {
    type State = State;

    fn start(&self) -> Result<State, BackendError> {
        let functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        let step = functions
            .get(&1)
            .ok_or_else(|| refused(&self.path, "it has no function `step`".to_owned()))?;
        // SAFETY: a plain message to a loaded model.
        Ok(State(unsafe { step.model.newState() }))
    }

    fn run(
        &self,
        state: &mut State,
        embeds: ArrayView2<'_, f32>,
        position: usize,
        last: usize,
    ) -> Result<Array1<f32>, BackendError> {
        let (new, hidden) = embeds.dim();
        let functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        let function = functions
            .get(&new)
            .ok_or_else(|| refused(&self.path, format!("it has no function for {new} new positions")))?;
        let whole = |number: usize| {
            let number = i32::try_from(number);
            number.map_err(|_| function.failed("a position beyond int32".to_owned()))
        };
        let values = embeds
            .as_slice()
            .ok_or_else(|| function.failed("`inputs_embeds` has gaps".to_owned()))?;
        let shape = [1, new, hidden];
        let mut inputs = vec![
            ("inputs_embeds", Elements::Float32(values), &shape[..]),
            ("position", Elements::Int32(whole(position)?), &[1][..]),
        ];
        if new > 1 {
            inputs.push(("last", Elements::Int32(whole(last)?), &[1][..]));
        }
        Ok(function.predict(&inputs, "logits", Some(&state.0))?.into_flat())
    }
}
