//! Which protobuf messages does a package hold? These, and nothing more of `Model.proto`, `FeatureTypes.proto` and
//! `MIL.proto`.
//!
//! Field numbers and enum values are those of coremltools 9.0 (`mlmodel/format`). Maps are ordered, so that equal models are
//! equal bytes.

use std::collections::BTreeMap;

/// A whole `model.mlmodel`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Model {
    /// The first release of Core ML that reads it, as a number.
    #[prost(int32, tag = "1")]
    pub specification_version: i32,
    /// What callers see.
    #[prost(message, optional, tag = "2")]
    pub description: Option<ModelDescription>,
    /// What is computed.
    #[prost(message, optional, tag = "502")]
    pub ml_program: Option<Program>,
}

/// What callers see: of a model with one function here, of a model with several in `functions`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ModelDescription {
    /// Inputs of the only function.
    #[prost(message, repeated, tag = "1")]
    pub input: Vec<FeatureDescription>,
    /// Outputs of the only function.
    #[prost(message, repeated, tag = "10")]
    pub output: Vec<FeatureDescription>,
    /// Several functions.
    #[prost(message, repeated, tag = "20")]
    pub functions: Vec<FunctionDescription>,
    /// That of `functions` which is meant when none is named.
    #[prost(string, tag = "21")]
    pub default_function_name: String,
    /// For people.
    #[prost(message, optional, tag = "100")]
    pub metadata: Option<Metadata>,
}

/// One of several functions.
#[derive(Clone, PartialEq, prost::Message)]
pub struct FunctionDescription {
    /// Its name in the program.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Inputs without states.
    #[prost(message, repeated, tag = "2")]
    pub input: Vec<FeatureDescription>,
    /// Outputs.
    #[prost(message, repeated, tag = "3")]
    pub output: Vec<FeatureDescription>,
    /// States.
    #[prost(message, repeated, tag = "6")]
    pub state: Vec<FeatureDescription>,
}

/// A named value.
#[derive(Clone, PartialEq, prost::Message)]
pub struct FeatureDescription {
    /// The name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// For people.
    #[prost(string, tag = "2")]
    pub short_description: String,
    /// Its type.
    #[prost(message, optional, tag = "3")]
    pub r#type: Option<FeatureType>,
}

/// The type of a named value.
#[derive(Clone, PartialEq, prost::Message)]
pub struct FeatureType {
    /// One of them.
    #[prost(oneof = "feature_type::Type", tags = "5, 8")]
    pub r#type: Option<feature_type::Type>,
}

/// The kinds of [`FeatureType`].
pub mod feature_type {
    /// One of them.
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Type {
        /// An array that is given or returned.
        #[prost(message, tag = "5")]
        MultiArray(super::ArrayFeatureType),
        /// An array that stays.
        #[prost(message, tag = "8")]
        State(super::StateFeatureType),
    }
}

/// An array.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ArrayFeatureType {
    /// Outermost first.
    #[prost(int64, repeated, tag = "1")]
    pub shape: Vec<i64>,
    /// [`ArrayDataType`].
    #[prost(enumeration = "ArrayDataType", tag = "2")]
    pub data_type: i32,
}

/// A state.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StateFeatureType {
    /// What it holds.
    #[prost(message, optional, tag = "1")]
    pub array_type: Option<ArrayFeatureType>,
}

/// Element types at the border of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum ArrayDataType {
    /// None.
    Invalid = 0,
    /// 16 bits.
    Float16 = 65552,
    /// 32 bits.
    Float32 = 65568,
    /// Signed, 32 bits.
    Int32 = 131_104,
}

/// For people.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Metadata {
    /// What it is.
    #[prost(string, tag = "1")]
    pub short_description: String,
    /// Of which version.
    #[prost(string, tag = "2")]
    pub version_string: String,
    /// By whom.
    #[prost(string, tag = "3")]
    pub author: String,
    /// Under which terms.
    #[prost(string, tag = "4")]
    pub license: String,
    /// Anything else.
    #[prost(btree_map = "string, string", tag = "100")]
    pub user_defined: BTreeMap<String, String>,
}

/// A program of the model intermediate language.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Program {
    /// 1.
    #[prost(int64, tag = "1")]
    pub version: i64,
    /// By name.
    #[prost(btree_map = "string, message", tag = "2")]
    pub functions: BTreeMap<String, Function>,
}

/// A function.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Function {
    /// States included.
    #[prost(message, repeated, tag = "1")]
    pub inputs: Vec<NamedValueType>,
    /// The operator set that is used: a key of `block_specializations`.
    #[prost(string, tag = "2")]
    pub opset: String,
    /// The body for each operator set.
    #[prost(btree_map = "string, message", tag = "3")]
    pub block_specializations: BTreeMap<String, Block>,
}

/// A body.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Block {
    /// Names of the values that are returned.
    #[prost(string, repeated, tag = "2")]
    pub outputs: Vec<String>,
    /// In the order in which they are computed.
    #[prost(message, repeated, tag = "3")]
    pub operations: Vec<Operation>,
}

/// An operation.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Operation {
    /// The operator.
    #[prost(string, tag = "1")]
    pub r#type: String,
    /// By the operator's parameter.
    #[prost(btree_map = "string, message", tag = "2")]
    pub inputs: BTreeMap<String, Argument>,
    /// What it computes.
    #[prost(message, repeated, tag = "3")]
    pub outputs: Vec<NamedValueType>,
    /// `name`, and of a constant `val`.
    #[prost(btree_map = "string, message", tag = "5")]
    pub attributes: BTreeMap<String, Value>,
}

/// What a parameter is given.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Argument {
    /// One, or several where the parameter is a list.
    #[prost(message, repeated, tag = "1")]
    pub arguments: Vec<Binding>,
}

/// One thing that a parameter is given.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Binding {
    /// One of them.
    #[prost(oneof = "binding::Binding", tags = "1, 2")]
    pub binding: Option<binding::Binding>,
}

/// The kinds of [`Binding`].
pub mod binding {
    /// One of them.
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Binding {
        /// Another operation's output, or an input of the function.
        #[prost(string, tag = "1")]
        Name(String),
        /// A literal.
        #[prost(message, tag = "2")]
        Value(super::Value),
    }
}

/// A name with its type.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NamedValueType {
    /// The name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its type.
    #[prost(message, optional, tag = "2")]
    pub r#type: Option<ValueType>,
}

/// A type.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ValueType {
    /// One of them.
    #[prost(oneof = "value_type::Type", tags = "1, 5")]
    pub r#type: Option<value_type::Type>,
}

/// The kinds of [`ValueType`].
pub mod value_type {
    /// One of them.
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Type {
        /// A tensor.
        #[prost(message, tag = "1")]
        Tensor(super::TensorType),
        /// A state.
        #[prost(message, tag = "5")]
        State(Box<super::StateType>),
    }
}

/// A tensor's type.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TensorType {
    /// [`DataType`].
    #[prost(enumeration = "DataType", tag = "1")]
    pub data_type: i32,
    /// The number of dimensions.
    #[prost(int64, tag = "2")]
    pub rank: i64,
    /// Outermost first.
    #[prost(message, repeated, tag = "3")]
    pub dimensions: Vec<Dimension>,
}

/// A dimension.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Dimension {
    /// A number.
    #[prost(message, optional, tag = "1")]
    pub constant: Option<ConstantDimension>,
}

/// A number.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ConstantDimension {
    /// The number.
    #[prost(uint64, tag = "1")]
    pub size: u64,
}

/// A state's type.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StateType {
    /// What it holds.
    #[prost(message, optional, boxed, tag = "1")]
    pub wrapped_type: Option<Box<ValueType>>,
}

/// Element types inside a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum DataType {
    /// None.
    Unused = 0,
    /// Truth values.
    Bool = 1,
    /// Text.
    String = 2,
    /// 16 bits.
    Float16 = 10,
    /// 32 bits.
    Float32 = 11,
    /// Signed, 8 bits.
    Int8 = 21,
    /// Signed, 32 bits.
    Int32 = 23,
    /// Signed, 4 bits.
    Int4 = 25,
}

/// A literal.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Value {
    /// Its type.
    #[prost(message, optional, tag = "2")]
    pub r#type: Option<ValueType>,
    /// Where it stands.
    #[prost(oneof = "value::Value", tags = "3, 5")]
    pub value: Option<value::Value>,
}

/// The kinds of [`Value`].
pub mod value {
    /// One of them.
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Value {
        /// Here.
        #[prost(message, tag = "3")]
        Immediate(super::ImmediateValue),
        /// In a file.
        #[prost(message, tag = "5")]
        BlobFile(super::BlobFileValue),
    }
}

/// A literal that stands here.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ImmediateValue {
    /// The elements.
    #[prost(message, optional, tag = "1")]
    pub tensor: Option<TensorValue>,
}

/// A literal that stands in a file.
#[derive(Clone, PartialEq, prost::Message)]
pub struct BlobFileValue {
    /// `@model_path/weights/weight.bin`
    #[prost(string, tag = "1")]
    pub file_name: String,
    /// Where its record begins.
    #[prost(uint64, tag = "2")]
    pub offset: u64,
}

/// Elements.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TensorValue {
    /// One of them.
    #[prost(oneof = "tensor_value::Value", tags = "1, 2, 3, 4, 7")]
    pub value: Option<tensor_value::Value>,
}

/// The kinds of [`TensorValue`].
pub mod tensor_value {
    /// One of them.
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Value {
        /// float32.
        #[prost(message, tag = "1")]
        Floats(super::RepeatedFloats),
        /// int32.
        #[prost(message, tag = "2")]
        Ints(super::RepeatedInts),
        /// Truth values.
        #[prost(message, tag = "3")]
        Bools(super::RepeatedBools),
        /// Text.
        #[prost(message, tag = "4")]
        Strings(super::RepeatedStrings),
        /// Anything else, little-endian.
        #[prost(message, tag = "7")]
        Bytes(super::RepeatedBytes),
    }
}

/// float32.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RepeatedFloats {
    /// The elements.
    #[prost(float, repeated, tag = "1")]
    pub values: Vec<f32>,
}

/// int32.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RepeatedInts {
    /// The elements.
    #[prost(int32, repeated, tag = "1")]
    pub values: Vec<i32>,
}

/// Truth values.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RepeatedBools {
    /// The elements.
    #[prost(bool, repeated, tag = "1")]
    pub values: Vec<bool>,
}

/// Text.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RepeatedStrings {
    /// The elements.
    #[prost(string, repeated, tag = "1")]
    pub values: Vec<String>,
}

/// Bytes.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RepeatedBytes {
    /// The elements.
    #[prost(bytes = "vec", tag = "1")]
    pub values: Vec<u8>,
}
