// FastVLM for C: a bundle that fvlm-export wrote answers questions about images. See runtime/capi/README.md.
// Made by cbindgen from runtime/capi/src; do not edit.

#ifndef FVLM_H
#define FVLM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// Changes whenever a function or a struct of this header does, so that what worked would not any more.
#define FVLM_ABI 1

// What became of a call.
typedef enum fvlm_status {
  // It did what it says.
  FVLM_STATUS_OK = 0,
  // A pointer that is null where none may be, text that is not UTF-8, a value that means nothing.
  FVLM_STATUS_ARGUMENT = 1,
  // The directory is no bundle, one of its files cannot be used, or it has not what the options ask for.
  FVLM_STATUS_BUNDLE = 2,
  // No engine can run it here.
  FVLM_STATUS_PROVIDER = 3,
  // An image cannot be read or used.
  FVLM_STATUS_IMAGE = 4,
  // Messages that make no prompt, or one that is too long.
  FVLM_STATUS_PROMPT = 5,
  // Cancelled before the answer began; the conversation is as it was, but `fvlm_choose` may have read its prompt.
  FVLM_STATUS_CANCELLED = 6,
  // An engine failed while it computed.
  FVLM_STATUS_FAILED = 7,
  // A bug of ours. Close the engine.
  FVLM_STATUS_INTERNAL = 8,
} fvlm_status;

// Why an answer ended.
typedef enum fvlm_finish {
  // The model ended it.
  FVLM_FINISH_STOP = 0,
  // One of the request's stop texts came.
  FVLM_FINISH_STOP_STRING = 1,
  // It has as many tokens as were allowed.
  FVLM_FINISH_MAX_TOKENS = 2,
  // The model can hold no more positions.
  FVLM_FINISH_MAX_CONTEXT = 3,
  // It was cancelled, or its words were not wanted any more.
  FVLM_FINISH_CANCELLED = 4,
} fvlm_finish;

// Who speaks.
typedef enum fvlm_role {
  // The one who asks.
  FVLM_ROLE_USER = 0,
  // The model.
  FVLM_ROLE_ASSISTANT = 1,
  // Instructions before the conversation.
  FVLM_ROLE_SYSTEM = 2,
} fvlm_role;

// Ends answers from another thread. Free it after the last answer that has it.
typedef struct fvlm_cancel fvlm_cancel;

// A bundle that answers, and one conversation. It may move between threads, one at a time may use it.
typedef struct fvlm_engine fvlm_engine;

// A bundle that is opened once, for any number of conversations. Any thread may use it, several at once.
typedef struct fvlm_model fvlm_model;

// Who computes, and with which graphs. `{0}` is as usual.
typedef struct fvlm_options {
  // `coreml`, `cpu`, `tract` or `auto`, `coreml-native` where it was built in; null is `auto`.
  const char *provider;
  // Fail where the provider cannot run, instead of taking another.
  bool no_fallback;
  // `fp32`, `fp16`, `int8`, `q8`, `q4`, `q4f16`; null is the first of the target.
  const char *precision;
  // `portable`, `cpu`, `coreml`; null is the best that the provider takes.
  const char *target;
  // ONNX Runtime's shared library, or a directory with it; null is well-known places.
  const char *onnxruntime;
  // A directory for models that Core ML has compiled; null is none.
  const char *coreml_cache;
  // Side of the square that images become, in pixels; 0 is the model's own.
  uint32_t image_size;
  // Threads that compute; 0 is the physical cores.
  uint32_t threads;
} fvlm_options;

// An image that was added to an engine.
typedef uint64_t fvlm_image;

// One turn of a conversation.
typedef struct fvlm_message {
  // Who speaks: an `fvlm_role`.
  uint32_t role;
  // What is said, in UTF-8.
  const char *text;
  // Images that are shown with it.
  const fvlm_image *images;
  // How many.
  size_t image_count;
} fvlm_message;

// How to answer. `{0}` is greedy.
typedef struct fvlm_request {
  // Most tokens of the answer; 0 is 256.
  size_t max_tokens;
  // 0 takes the likeliest token; above 0 draws, the higher the wilder.
  float temperature;
  // Draw only from the likeliest tokens that together reach this probability; 0 is all.
  float top_p;
  // Draw only from so many of the likeliest tokens; 0 is all.
  size_t top_k;
  // Above 1 makes tokens that were there less likely; 0 is 1.
  float repetition_penalty;
  // Seed of the draws.
  uint64_t seed;
  // Texts that end the answer and are not part of it.
  const char *const *stops;
  // How many.
  size_t stop_count;
  // Ends the answer as soon as it is set; null is never.
  const struct fvlm_cancel *cancel;
} fvlm_request;

// Gets the words of an answer as they come: whole characters in UTF-8, `length` bytes and a zero after them, valid during the
// call. An answer ends where this returns false.
typedef bool (*fvlm_on_text)(const char *text, size_t length, void *user);

// An answer; `fvlm_answer_free` frees what it points to.
typedef struct fvlm_answer {
  // All of it, in UTF-8.
  char *text;
  // Its token ids, without the one that stopped it.
  int64_t *tokens;
  // How many.
  size_t token_count;
  // Why it ended.
  enum fvlm_finish finish;
  // Positions of the prompt.
  size_t prompt_positions;
  // How many of them were in the conversation already, and were not computed again.
  size_t reused_positions;
  // Seconds from the call, image preparation included, to the first token; 0 if there is none.
  double time_to_first_token;
  // Tokens a second after the first; 0 if there are fewer than two.
  double tokens_per_second;
} fvlm_answer;

// A conversation with a model. Every function that takes an engine takes it: an engine is a model and one conversation.
typedef struct fvlm_engine fvlm_conversation;

// What an answer keeps to, and what is told of its tokens. `{0}` is nothing.
typedef struct fvlm_structure {
  // A JSON schema, as JSON: the answer is JSON that is valid against it; null is none.
  const char *json_schema;
  // A regular expression, which the answer matches as a whole; null is none.
  const char *regex;
  // How many of the likeliest tokens in the place of each of the answer's are told, at most 20.
  uint32_t top_logprobs;
} fvlm_structure;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// The number of this interface; compare with `FVLM_ABI` of the header.
uint32_t fvlm_abi(void);

// The version of the library, for people.
const char *fvlm_version(void);

// Opens the bundle in a directory; `options` may be null. It returns early: what cannot be opened is the error of the call that needs
// it, `fvlm_ready` waits for all of it. Close the engine with `fvlm_close`.
//
// # Safety
// `bundle` is a text, `engine` a place to write to; all texts of `options` are texts or null. As everywhere here, `error` is null or a place for a
// text, which is written where the status is not `FVLM_STATUS_OK`; free it with `fvlm_string_free`.
enum fvlm_status fvlm_open(const char *bundle,
                           const struct fvlm_options *options,
                           struct fvlm_engine **engine,
                           char **error);

// Waits until everything is open.
//
// # Safety
// `engine` came from `fvlm_open` and is not closed, here and below.
enum fvlm_status fvlm_ready(struct fvlm_engine *engine, char **error);

// Who computes, and with which graphs, as JSON; waits for them. Free the text with `fvlm_string_free`.
//
// # Safety
// `json` is a place to write to.
enum fvlm_status fvlm_provider(struct fvlm_engine *engine, char **json, char **error);

// Closes an engine or a conversation, and waits for what of it is still being opened, unless others use it; null does nothing.
// The process may end with engines that are not closed.
//
// # Safety
// `engine` came from `fvlm_open`, is closed once and not used afterwards.
void fvlm_close(struct fvlm_engine *engine);

// Adds an image file (PNG, JPEG, WebP, GIF, BMP, TIFF, and where libheif is installed HEIC and AVIF), so that messages can show it. It is a regular file: nobody waits for a pipe. The
// same image is the same `image`. What was made of it for the model stays in memory until `fvlm_forget_images` or `fvlm_reset`,
// here and in the next two functions; the model keeps the features of the latest images, up to 32 MiB.
//
// # Safety
// `path` is a text, `image` a place to write to.
enum fvlm_status fvlm_add_image_file(struct fvlm_engine *engine,
                                     const char *path,
                                     fvlm_image *image,
                                     char **error);

// Adds an image that is a file in memory.
//
// # Safety
// `bytes` points to `length` bytes, `image` is a place to write to.
enum fvlm_status fvlm_add_image_bytes(struct fvlm_engine *engine,
                                      const uint8_t *bytes,
                                      size_t length,
                                      fvlm_image *image,
                                      char **error);

// Adds a frame: rows from the top, `stride` bytes apart, three bytes (red, green, blue) a pixel.
//
// # Safety
// `pixels` points to `height` rows, `image` is a place to write to.
enum fvlm_status fvlm_add_image_rgb(struct fvlm_engine *engine,
                                    const uint8_t *pixels,
                                    uint32_t width,
                                    uint32_t height,
                                    size_t stride,
                                    fvlm_image *image,
                                    char **error);

// Forgets all images, but not the conversation: what is computed stays useful.
//
// # Safety
// As `fvlm_ready`.
enum fvlm_status fvlm_forget_images(struct fvlm_engine *engine, char **error);

// Forgets the conversation and all images.
//
// # Safety
// As `fvlm_ready`.
enum fvlm_status fvlm_reset(struct fvlm_engine *engine, char **error);

// The answer to `messages`, the whole conversation: what it has in common with the last one is not computed again. `request` may be
// null; `on_text` too, then the words are in `answer` only. `answer` may be null if `on_text` is enough; otherwise free it with `fvlm_answer_free`.
//
// # Safety
// `messages` points to `message_count` messages, whose texts are texts and whose images are so many; all pointers of `request` are null or what
// its fields say. `on_text` does not use the engine, and returns: no exception and no `longjmp` leaves it.
enum fvlm_status fvlm_chat(struct fvlm_engine *engine,
                           const struct fvlm_message *messages,
                           size_t message_count,
                           const struct fvlm_request *request,
                           fvlm_on_text on_text,
                           void *user,
                           struct fvlm_answer *answer,
                           char **error);

// Frees what an answer points to; null does nothing.
//
// # Safety
// `answer` was written by `fvlm_chat`; it is empty afterwards.
void fvlm_answer_free(struct fvlm_answer *answer);

// Frees a text of ours; null does nothing.
//
// # Safety
// `text` came from this library and is freed once.
void fvlm_string_free(char *text);

// Something that ends answers; free it with `fvlm_cancel_free`.
struct fvlm_cancel *fvlm_cancel_new(void);

// Ends the answers that have it (true), or lets them go on (false): from any thread, at any time.
//
// # Safety
// `cancel` came from `fvlm_cancel_new` and is not freed, or is null, which does nothing.
void fvlm_cancel_set(const struct fvlm_cancel *cancel, bool cancelled);

// Frees it; null does nothing.
//
// # Safety
// `cancel` came from `fvlm_cancel_new` and is freed once, when no answer has it any more.
void fvlm_cancel_free(struct fvlm_cancel *cancel);

// Opens the bundle in a directory for any number of conversations; `options` may be null. It returns early, as
// `fvlm_open` does. Any thread may use the model, several at once. Free it with `fvlm_model_free`.
//
// # Safety
// `bundle` is a text, `model` a place to write to; all texts of `options` are texts or null.
enum fvlm_status fvlm_model_open(const char *bundle,
                                 const struct fvlm_options *options,
                                 struct fvlm_model **model,
                                 char **error);

// Waits until everything is open.
//
// # Safety
// `model` came from `fvlm_model_open` and is not freed, here and below.
enum fvlm_status fvlm_model_ready(const struct fvlm_model *model, char **error);

// Reads every file of the bundle, weights too, and compares its SHA-256 with the bundle's contract, on all
// processors. Graphs and small files are compared whenever a bundle is opened; weights only here. The status is
// `FVLM_STATUS_BUNDLE` where a file is not as it was exported; the text names all of them.
//
// # Safety
// As `fvlm_model_ready`.
enum fvlm_status fvlm_model_verify(const struct fvlm_model *model,
                                   char **error);

// Who computes, and with which graphs, as JSON; waits for them. Free the text with `fvlm_string_free`.
//
// # Safety
// `json` is a place to write to.
enum fvlm_status fvlm_model_provider(const struct fvlm_model *model, char **json, char **error);

// A conversation of nothing with a model, which it keeps alive. It is used as an engine is, in every function that
// takes one, by one thread at a time; close it with `fvlm_close`. Any number of them live beside each other, and
// nothing is loaded again.
//
// # Safety
// `conversation` is a place to write to.
enum fvlm_status fvlm_conversation_new(const struct fvlm_model *model,
                                       fvlm_conversation **conversation,
                                       char **error);

// Bytes that a conversation remembers the past with, its KV cache: 0 before the first prompt, and for null.
//
// # Safety
// `conversation` came from `fvlm_conversation_new` or `fvlm_open` and is not closed, or is null.
size_t fvlm_conversation_cache_bytes(fvlm_conversation *conversation);

// Whether `fvlm_chat` may leave out the oldest turns of its messages where they leave no room for an answer, instead
// of failing with `FVLM_STATUS_PROMPT`. Messages of the system before the first turn stay, and so do all images. Off
// at first; null does nothing.
//
// # Safety
// As `fvlm_conversation_cache_bytes`.
void fvlm_conversation_context_shift(fvlm_conversation *conversation,
                                     bool allowed);

// Frees a model; null does nothing. Conversations with it go on; what of it is still being opened is waited for when
// the last of them is closed.
//
// # Safety
// `model` came from `fvlm_model_open`, is freed once and not used afterwards.
void fvlm_model_free(struct fvlm_model *model);

// As `fvlm_chat`, for an answer that keeps to a `structure` (null is none), and whose tokens come with their log-probabilities where
// `logprobs` is not null: then it becomes JSON, an array with an object for each token: `token` (its text), `bytes`, `id`, `logprob`,
// and `top_logprobs` with as many of the likeliest tokens in its place as the structure asks for. Free that text with `fvlm_string_free`.
//
// # Safety
// As `fvlm_chat`; `structure` is null, or its texts are texts or null; `logprobs` is null or a place to write to.
enum fvlm_status fvlm_chat_structured(struct fvlm_engine *engine,
                                      const struct fvlm_message *messages,
                                      size_t message_count,
                                      const struct fvlm_request *request,
                                      const struct fvlm_structure *structure,
                                      fvlm_on_text on_text,
                                      void *user,
                                      struct fvlm_answer *answer,
                                      char **logprobs,
                                      char **error);

// How likely each of `choices` is as the answer to `messages`: the natural logarithms of their probabilities, and their shares of the
// probability of all of them, which add up to 1. The prompt is read once. Of `request` only `cancel` changes
// anything.
//
// # Safety
// As `fvlm_chat`; `choices` points to `choice_count` texts; `logprobs` and `probabilities` are null or places for as many numbers.
enum fvlm_status fvlm_choose(struct fvlm_engine *engine,
                             const struct fvlm_message *messages,
                             size_t message_count,
                             const char *const *choices,
                             size_t choice_count,
                             const struct fvlm_request *request,
                             double *logprobs,
                             double *probabilities,
                             char **error);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* FVLM_H */
