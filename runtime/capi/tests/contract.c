// What fvlm.h promises, from C.    contract BUNDLE IMAGE PPM
//
// BUNDLE is of the demo model, PPM the image as raw bytes (P6). Says on stderr what is not kept; exit code 1 then.

#include "fvlm.h"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int broken = 0;

#define EXPECT(what)                                                                   \
    do {                                                                               \
        if (!(what)) {                                                                 \
            fprintf(stderr, "%s:%d: not kept: %s\n", __FILE__, __LINE__, #what);       \
            broken = 1;                                                                \
        }                                                                              \
    } while (0)

// Expects a status other than OK, with a text that has `words` in it.
#define REFUSED(call, expected, words)                                                 \
    do {                                                                               \
        char *error = NULL;                                                            \
        fvlm_status status = (call);                                                   \
        EXPECT(status == (expected));                                                  \
        EXPECT(error != NULL && strstr(error, (words)) != NULL);                       \
        if (error != NULL && strstr(error, (words)) == NULL) fprintf(stderr, "  it says: %s\n", error); \
        fvlm_string_free(error);                                                       \
    } while (0)

static const char *const QUESTION = "Describe the image.";

// Opens an engine and closes it at once.
static void open_and_close(const char *bundle) {
    fvlm_engine *engine = NULL;
    EXPECT(fvlm_open(bundle, NULL, &engine, NULL) == FVLM_STATUS_OK);
    fvlm_close(engine);
}

typedef struct {
    char text[4096];
    size_t length;
    int calls, enough_after;
    fvlm_cancel *cancel;
} heard;

static bool hear(const char *text, size_t length, void *user) {
    heard *to = user;
    EXPECT(strlen(text) == length);
    if (to->length + length < sizeof to->text) {
        memcpy(to->text + to->length, text, length + 1);
        to->length += length;
    }
    to->calls += 1;
    return to->enough_after == 0 || to->calls < to->enough_after;
}

// Another thread that ends the answer.
static void *end(void *cancel) {
    fvlm_cancel_set(cancel, true);
    return NULL;
}

static bool hear_and_let_another_thread_end(const char *text, size_t length, void *user) {
    heard *to = user;
    pthread_t other;
    EXPECT(pthread_create(&other, NULL, end, to->cancel) == 0);
    pthread_join(other, NULL);
    return hear(text, length, user);
}

// One conversation of several over a model, on a thread of its own.
typedef struct {
    const fvlm_model *model;
    const char *image, *question;
    fvlm_answer answer;
    size_t cache;
} dialogue;

static void *talk(void *argument) {
    dialogue *to = argument;
    fvlm_conversation *conversation = NULL;
    EXPECT(fvlm_conversation_new(to->model, &conversation, NULL) == FVLM_STATUS_OK);
    if (conversation == NULL) return NULL;
    EXPECT(fvlm_conversation_cache_bytes(conversation) == 0);
    fvlm_image image = 0;
    EXPECT(fvlm_add_image_file(conversation, to->image, &image, NULL) == FVLM_STATUS_OK);
    fvlm_message turn = {.role = FVLM_ROLE_USER, .text = to->question, .images = &image, .image_count = 1};
    EXPECT(fvlm_chat(conversation, &turn, 1, NULL, NULL, NULL, &to->answer, NULL) == FVLM_STATUS_OK);
    to->cache = fvlm_conversation_cache_bytes(conversation);
    fvlm_close(conversation);
    return NULL;
}

// Two conversations beside each other answer as they do one after another.
static void conversations(const char *bundle, const char *image) {
    fvlm_model *model = NULL;
    REFUSED(fvlm_model_open(NULL, NULL, &model, &error), FVLM_STATUS_ARGUMENT, "`bundle` is null");
    REFUSED(fvlm_model_open(bundle, NULL, NULL, &error), FVLM_STATUS_ARGUMENT, "`model` is null");
    REFUSED(fvlm_model_open("/nowhere", NULL, &model, &error), FVLM_STATUS_BUNDLE, "/nowhere");
    REFUSED(fvlm_model_ready(NULL, &error), FVLM_STATUS_ARGUMENT, "`model` is null");
    EXPECT(fvlm_model_open(bundle, NULL, &model, NULL) == FVLM_STATUS_OK);
    if (model == NULL) return;
    REFUSED(fvlm_conversation_new(model, NULL, &error), FVLM_STATUS_ARGUMENT, "`conversation` is null");
    EXPECT(fvlm_model_ready(model, NULL) == FVLM_STATUS_OK);
    char *json = NULL;
    EXPECT(fvlm_model_provider(model, &json, NULL) == FVLM_STATUS_OK);
    EXPECT(json != NULL && strstr(json, "\"target\":\"portable\"") != NULL);
    fvlm_string_free(json);
    dialogue alone[2] = {{model, image, QUESTION, {0}, 0}, {model, image, "What color is the background?", {0}, 0}};
    dialogue beside[2] = {alone[0], alone[1]};
    for (int i = 0; i < 2; i += 1) talk(&alone[i]);
    pthread_t threads[2];
    for (int i = 0; i < 2; i += 1) EXPECT(pthread_create(&threads[i], NULL, talk, &beside[i]) == 0);
    for (int i = 0; i < 2; i += 1) pthread_join(threads[i], NULL);
    for (int i = 0; i < 2; i += 1) {
        EXPECT(alone[i].answer.text != NULL && beside[i].answer.text != NULL);
        if (alone[i].answer.text == NULL || beside[i].answer.text == NULL) continue;
        EXPECT(strcmp(alone[i].answer.text, beside[i].answer.text) == 0);
        EXPECT(alone[i].answer.token_count == beside[i].answer.token_count && beside[i].answer.reused_positions == 0);
        EXPECT(alone[i].cache > 0 && alone[i].cache == beside[i].cache);
        fvlm_answer_free(&alone[i].answer);
        fvlm_answer_free(&beside[i].answer);
    }
    EXPECT(fvlm_model_verify(model, NULL) == FVLM_STATUS_OK);
    REFUSED(fvlm_model_verify(NULL, &error), FVLM_STATUS_ARGUMENT, "`model` is null");
    // A conversation keeps its model.
    fvlm_conversation *last = NULL;
    EXPECT(fvlm_conversation_new(model, &last, NULL) == FVLM_STATUS_OK);
    // One that is longer than the context.
    static char much[1200];
    for (size_t i = 0; i + 1 < sizeof much; i += 1) much[i] = i % 5 == 4 ? ' ' : (char)('a' + i % 26);
    fvlm_message turns[21];
    for (int i = 0; i < 21; i += 1) turns[i] = (fvlm_message){.role = i % 2 == 0 ? FVLM_ROLE_USER : FVLM_ROLE_ASSISTANT, .text = much};
    fvlm_request few = {.max_tokens = 2};
    REFUSED(fvlm_chat(last, turns, 21, &few, NULL, NULL, NULL, &error), FVLM_STATUS_PROMPT, "positions");
    fvlm_conversation_context_shift(last, true);
    EXPECT(fvlm_chat(last, turns, 21, &few, NULL, NULL, NULL, NULL) == FVLM_STATUS_OK);
    fvlm_conversation_context_shift(last, false);
    REFUSED(fvlm_chat(last, turns, 21, &few, NULL, NULL, NULL, &error), FVLM_STATUS_PROMPT, "positions");
    fvlm_conversation_context_shift(NULL, true);
    fvlm_model_free(model);
    fvlm_model_free(NULL);
    EXPECT(fvlm_ready(last, NULL) == FVLM_STATUS_OK);
    fvlm_close(last);
    EXPECT(fvlm_conversation_cache_bytes(NULL) == 0);
}

// Answers that programs read.
static void structured(const char *bundle, const char *image) {
    fvlm_engine *engine = NULL;
    EXPECT(fvlm_open(bundle, NULL, &engine, NULL) == FVLM_STATUS_OK);
    if (engine == NULL) return;
    fvlm_image shown = 0;
    EXPECT(fvlm_add_image_file(engine, image, &shown, NULL) == FVLM_STATUS_OK);
    fvlm_message turn = {.role = FVLM_ROLE_USER, .text = QUESTION, .images = &shown, .image_count = 1};

    // As without a structure, and how likely each token is.
    fvlm_answer plain = {0}, answer = {0};
    char *json = NULL;
    EXPECT(fvlm_chat(engine, &turn, 1, NULL, NULL, NULL, &plain, NULL) == FVLM_STATUS_OK);
    EXPECT(fvlm_chat_structured(engine, &turn, 1, NULL, NULL, NULL, NULL, &answer, &json, NULL) == FVLM_STATUS_OK);
    EXPECT(plain.text != NULL && answer.text != NULL && strcmp(plain.text, answer.text) == 0);
    EXPECT(json != NULL && strncmp(json, "[{\"token\":", 10) == 0 && strstr(json, "\"top_logprobs\":[]") != NULL);
    fvlm_string_free(json);
    fvlm_answer_free(&answer);
    fvlm_structure structure = {.regex = "(red|green) [0-9]", .top_logprobs = 2};
    EXPECT(fvlm_chat_structured(engine, &turn, 1, NULL, &structure, NULL, NULL, &answer, &json, NULL) == FVLM_STATUS_OK);
    EXPECT(answer.finish == FVLM_FINISH_STOP && (strncmp(answer.text, "red ", 4) == 0 || strncmp(answer.text, "green ", 6) == 0));
    EXPECT(json != NULL && strstr(json, "\"top_logprobs\":[{") != NULL);
    fvlm_string_free(json);
    fvlm_answer_free(&answer);
    structure = (fvlm_structure){.json_schema = "{\"enum\": [\"a\", 7]}"};
    EXPECT(fvlm_chat_structured(engine, &turn, 1, NULL, &structure, NULL, NULL, &answer, NULL, NULL) == FVLM_STATUS_OK);
    EXPECT(strcmp(answer.text, "\"a\"") == 0 || strcmp(answer.text, "7") == 0);
    fvlm_answer_free(&answer);
    structure = (fvlm_structure){.json_schema = "{"};
    REFUSED(fvlm_chat_structured(engine, &turn, 1, NULL, &structure, NULL, NULL, &answer, NULL, &error), FVLM_STATUS_ARGUMENT, "`json_schema` is no JSON");
    structure = (fvlm_structure){.json_schema = "{\"not\": {}}"};
    REFUSED(fvlm_chat_structured(engine, &turn, 1, NULL, &structure, NULL, NULL, &answer, NULL, &error), FVLM_STATUS_ARGUMENT, "not");
    structure = (fvlm_structure){.json_schema = "{}", .regex = "a"};
    REFUSED(fvlm_chat_structured(engine, &turn, 1, NULL, &structure, NULL, NULL, &answer, NULL, &error), FVLM_STATUS_ARGUMENT, "expected one");
    structure = (fvlm_structure){.regex = "("};
    REFUSED(fvlm_chat_structured(engine, &turn, 1, NULL, &structure, NULL, NULL, &answer, NULL, &error), FVLM_STATUS_ARGUMENT, "regular expression");
    structure = (fvlm_structure){.top_logprobs = 1};
    REFUSED(fvlm_chat_structured(engine, &turn, 1, NULL, &structure, NULL, NULL, &answer, NULL, &error), FVLM_STATUS_ARGUMENT, "`logprobs` is null");
    structure = (fvlm_structure){.top_logprobs = 21};
    REFUSED(fvlm_chat_structured(engine, &turn, 1, NULL, &structure, NULL, NULL, &answer, &json, &error), FVLM_STATUS_ARGUMENT, "expected 0 to 20");

    // The likeliest of several.
    const char *choices[] = {plain.text, "Nothing.", "No"};
    double logprobs[3] = {1, 1, 1}, probabilities[3] = {0};
    EXPECT(fvlm_choose(engine, &turn, 1, choices, 3, NULL, logprobs, probabilities, NULL) == FVLM_STATUS_OK);
    double sum = probabilities[0] + probabilities[1] + probabilities[2];
    EXPECT(sum > 0.999999 && sum < 1.000001 && probabilities[0] > 0.9);
    EXPECT(logprobs[0] <= 0 && logprobs[1] < logprobs[0] && logprobs[2] < logprobs[0]);
    EXPECT(fvlm_choose(engine, &turn, 1, choices, 3, NULL, NULL, NULL, NULL) == FVLM_STATUS_OK);
    REFUSED(fvlm_choose(engine, &turn, 1, choices, 0, NULL, NULL, NULL, &error), FVLM_STATUS_ARGUMENT, "0 choices");
    REFUSED(fvlm_choose(engine, &turn, 1, NULL, 2, NULL, NULL, NULL, &error), FVLM_STATUS_ARGUMENT, "`choices` is null");
    choices[1] = plain.text;
    REFUSED(fvlm_choose(engine, &turn, 1, choices, 3, NULL, NULL, NULL, &error), FVLM_STATUS_ARGUMENT, "there twice");
    choices[1] = NULL;
    REFUSED(fvlm_choose(engine, &turn, 1, choices, 3, NULL, NULL, NULL, &error), FVLM_STATUS_ARGUMENT, "`choices` is null");
    fvlm_answer_free(&plain);
    fvlm_close(engine);
}

// Rows of `P6 width height 255`, with `padding` bytes after each.
static unsigned char *read_ppm(const char *path, unsigned padding, uint32_t *width, uint32_t *height) {
    FILE *file = fopen(path, "rb");
    unsigned w = 0, h = 0;
    if (file == NULL || fscanf(file, "P6 %u %u 255", &w, &h) != 2 || fgetc(file) == EOF) exit(2);
    size_t row = (size_t)w * 3;
    unsigned char *pixels = malloc((row + padding) * h);
    for (unsigned line = 0; line < h; line += 1)
        if (fread(pixels + line * (row + padding), 1, row, file) != row) exit(2);
    fclose(file);
    *width = w;
    *height = h;
    return pixels;
}

int main(int count, char **arguments) {
    if (count != 5) return 2;
    const char *bundle = arguments[1], *file = arguments[3];
    fvlm_engine *engine = NULL;
    EXPECT(fvlm_abi() == FVLM_ABI);
    EXPECT(strlen(fvlm_version()) > 0);

    // Arguments that mean nothing.
    REFUSED(fvlm_open(NULL, NULL, &engine, &error), FVLM_STATUS_ARGUMENT, "`bundle` is null");
    REFUSED(fvlm_open(bundle, NULL, NULL, &error), FVLM_STATUS_ARGUMENT, "`engine` is null");
    REFUSED(fvlm_open("/nowhere", NULL, &engine, &error), FVLM_STATUS_BUNDLE, "/nowhere");
    fvlm_options options = {.provider = "gpu"};
    REFUSED(fvlm_open(bundle, &options, &engine, &error), FVLM_STATUS_ARGUMENT, "no provider `gpu`");
    options = (fvlm_options){.precision = "fp12"};
    REFUSED(fvlm_open(bundle, &options, &engine, &error), FVLM_STATUS_BUNDLE, "fp12");
    options = (fvlm_options){.provider = "\xff"};
    REFUSED(fvlm_open(bundle, &options, &engine, &error), FVLM_STATUS_ARGUMENT, "`provider` is not UTF-8");
    options = (fvlm_options){.threads = UINT32_MAX};
    REFUSED(fvlm_open(bundle, &options, &engine, &error), FVLM_STATUS_ARGUMENT, "`threads` is 4294967295");
    EXPECT(fvlm_open(NULL, NULL, &engine, NULL) == FVLM_STATUS_ARGUMENT);
    EXPECT(engine == NULL);
    for (int i = 0; i < 5; i += 1) open_and_close(bundle);

    options = (fvlm_options){.provider = "auto", .threads = 1};
    EXPECT(fvlm_open(bundle, &options, &engine, NULL) == FVLM_STATUS_OK);
    if (engine == NULL) return 1;
    EXPECT(fvlm_ready(engine, NULL) == FVLM_STATUS_OK);
    char *json = NULL;
    EXPECT(fvlm_provider(engine, &json, NULL) == FVLM_STATUS_OK);
    EXPECT(json != NULL && strstr(json, "\"target\":\"portable\"") != NULL);
    EXPECT(json != NULL && strstr(json, "\"notices\"") == NULL);
    fvlm_string_free(json);

    // Who is replaced, and why.
    fvlm_engine *other = NULL;
    options = (fvlm_options){.provider = "cpu", .onnxruntime = "/nowhere/libonnxruntime.so"};
    EXPECT(fvlm_open(bundle, &options, &other, NULL) == FVLM_STATUS_OK);
    EXPECT(fvlm_provider(other, &json, NULL) == FVLM_STATUS_OK);
    EXPECT(json != NULL && strstr(json, "\"used\":\"tract\"") != NULL && strstr(json, "/nowhere/libonnxruntime.so") != NULL);
    fvlm_string_free(json);
    fvlm_close(other);

    // One image, three ways.
    fvlm_image image = 0, same = 0;
    REFUSED(fvlm_add_image_file(engine, "/nowhere.png", &image, &error), FVLM_STATUS_IMAGE, "/nowhere.png");
    REFUSED(fvlm_add_image_bytes(engine, (const uint8_t *)"GIF", 3, &image, &error), FVLM_STATUS_IMAGE, "bytes");
    REFUSED(fvlm_add_image_bytes(engine, NULL, 3, &image, &error), FVLM_STATUS_ARGUMENT, "`bytes` is null");
    EXPECT(fvlm_add_image_file(engine, file, &image, NULL) == FVLM_STATUS_OK);
    FILE *opened = fopen(file, "rb");
    static unsigned char bytes[1 << 22];
    size_t length = opened == NULL ? 0 : fread(bytes, 1, sizeof bytes, opened);
    if (opened != NULL) fclose(opened);
    EXPECT(fvlm_add_image_bytes(engine, bytes, length, &same, NULL) == FVLM_STATUS_OK);
    EXPECT(same == image);
    for (unsigned padding = 0; padding <= 5; padding += 5) {
        uint32_t width, height;
        unsigned char *pixels = read_ppm(arguments[4], padding, &width, &height);
        size_t stride = (size_t)width * 3 + padding;
        same = 0;
        EXPECT(fvlm_add_image_rgb(engine, pixels, width, height, stride, &same, NULL) == FVLM_STATUS_OK);
        EXPECT(same == image);
        REFUSED(fvlm_add_image_rgb(engine, pixels, width, height, 5, &same, &error), FVLM_STATUS_ARGUMENT, "a frame of");
        REFUSED(fvlm_add_image_rgb(engine, pixels, 0, height, stride, &same, &error), FVLM_STATUS_ARGUMENT, "a frame of 0 x");
        // Sizes that no memory has are refused before anything is read.
        const uint32_t most = 0xffffffff;
        REFUSED(fvlm_add_image_rgb(engine, pixels, most, most, (size_t)most * 3, &same, &error), FVLM_STATUS_ARGUMENT, "a frame of");
        REFUSED(fvlm_add_image_rgb(engine, pixels, 1, most, 3, &same, &error), FVLM_STATUS_ARGUMENT, "expected at most");
        REFUSED(fvlm_add_image_rgb(engine, pixels, width, height, SIZE_MAX, &same, &error), FVLM_STATUS_ARGUMENT, "address space");
        REFUSED(fvlm_add_image_bytes(engine, pixels, SIZE_MAX, &same, &error), FVLM_STATUS_ARGUMENT, "address space");
        free(pixels);
    }

    EXPECT(fvlm_forget_images(engine, NULL) == FVLM_STATUS_OK);
    EXPECT(fvlm_add_image_file(engine, arguments[2], &image, NULL) == FVLM_STATUS_OK);

    // An answer, its words, its tokens; then a follow-up.
    fvlm_message turns[3] = {{.role = FVLM_ROLE_USER, .text = QUESTION, .images = &image, .image_count = 1}};
    fvlm_answer answer = {0}, again = {0};
    heard words = {.calls = 0};
    EXPECT(fvlm_chat(engine, turns, 1, NULL, hear, &words, &answer, NULL) == FVLM_STATUS_OK);
    EXPECT(answer.text != NULL && strcmp(answer.text, words.text) == 0 && words.length > 10);
    EXPECT(answer.finish == FVLM_FINISH_STOP && answer.token_count > 4 && answer.tokens[0] > 0);
    EXPECT(answer.prompt_positions > 20 && answer.reused_positions == 0 && answer.time_to_first_token > 0);
    turns[1] = (fvlm_message){.role = FVLM_ROLE_ASSISTANT, .text = answer.text};
    turns[2] = (fvlm_message){.role = FVLM_ROLE_USER, .text = "What color is the background?"};
    EXPECT(fvlm_chat(engine, turns, 3, NULL, NULL, NULL, &again, NULL) == FVLM_STATUS_OK);
    EXPECT(again.reused_positions > answer.prompt_positions);
    fvlm_answer_free(&again);
    EXPECT(again.text == NULL && again.tokens == NULL && again.token_count == 0);

    // Fewer tokens, other ends.
    fvlm_request request = {.max_tokens = 3};
    EXPECT(fvlm_chat(engine, turns, 1, &request, NULL, NULL, &again, NULL) == FVLM_STATUS_OK);
    EXPECT(again.token_count == 3 && again.finish == FVLM_FINISH_MAX_TOKENS);
    EXPECT(memcmp(again.tokens, answer.tokens, 3 * sizeof *again.tokens) == 0);
    fvlm_answer_free(&again);
    const char *stops[] = {" and"};
    request = (fvlm_request){.stops = stops, .stop_count = 1};
    EXPECT(fvlm_chat(engine, turns, 1, &request, NULL, NULL, &again, NULL) == FVLM_STATUS_OK);
    EXPECT(again.finish == FVLM_FINISH_STOP_STRING && strstr(again.text, " and") == NULL);
    fvlm_answer_free(&again);
    const char *none[] = {" and", ""};
    request = (fvlm_request){.stops = none, .stop_count = 2};
    REFUSED(fvlm_chat(engine, turns, 1, &request, NULL, NULL, NULL, &error), FVLM_STATUS_ARGUMENT, "`stops` is empty");
    heard few = {.enough_after = 2};
    EXPECT(fvlm_chat(engine, turns, 1, NULL, hear, &few, &again, NULL) == FVLM_STATUS_OK);
    EXPECT(few.calls == 2 && again.finish == FVLM_FINISH_CANCELLED && strcmp(few.text, again.text) == 0);
    fvlm_answer_free(&again);
    request = (fvlm_request){.temperature = -1};
    REFUSED(fvlm_chat(engine, turns, 1, &request, NULL, NULL, NULL, &error), FVLM_STATUS_ARGUMENT, "temperature");

    // Ended by another thread, and before it begins.
    fvlm_cancel *cancel = fvlm_cancel_new();
    request = (fvlm_request){.cancel = cancel};
    heard ended = {.cancel = cancel};
    EXPECT(fvlm_chat(engine, turns, 1, &request, hear_and_let_another_thread_end, &ended, &again, NULL) == FVLM_STATUS_OK);
    EXPECT(ended.calls == 1 && again.finish == FVLM_FINISH_CANCELLED);
    fvlm_answer_free(&again);
    REFUSED(fvlm_chat(engine, turns, 1, &request, NULL, NULL, NULL, &error), FVLM_STATUS_CANCELLED, "cancelled");
    fvlm_cancel_set(cancel, false);
    EXPECT(fvlm_chat(engine, turns, 1, &request, NULL, NULL, &again, NULL) == FVLM_STATUS_OK);
    EXPECT(strcmp(again.text, answer.text) == 0);
    fvlm_answer_free(&again);
    fvlm_cancel_free(cancel);

    // Messages that make no prompt.
    fvlm_message odd = {.role = 7, .text = "?"};
    REFUSED(fvlm_chat(engine, &odd, 1, NULL, NULL, NULL, NULL, &error), FVLM_STATUS_ARGUMENT, "`role` is 7");
    odd = (fvlm_message){.role = FVLM_ROLE_USER};
    REFUSED(fvlm_chat(engine, &odd, 1, NULL, NULL, NULL, NULL, &error), FVLM_STATUS_ARGUMENT, "`text` is null");
    REFUSED(fvlm_chat(engine, NULL, 1, NULL, NULL, NULL, NULL, &error), FVLM_STATUS_ARGUMENT, "`messages` is null");
    for (int bits = 59; bits < 64; bits += 1) {
        size_t many = (size_t)1 << bits;
        REFUSED(fvlm_chat(engine, turns, many, NULL, NULL, NULL, NULL, &error), FVLM_STATUS_ARGUMENT, "of `messages` are larger");
        if (bits < 60) continue;
        odd = (fvlm_message){.role = FVLM_ROLE_USER, .text = QUESTION, .images = &image, .image_count = many};
        REFUSED(fvlm_chat(engine, &odd, 1, NULL, NULL, NULL, NULL, &error), FVLM_STATUS_ARGUMENT, "of `images` are larger");
        request = (fvlm_request){.stops = stops, .stop_count = many};
        REFUSED(fvlm_chat(engine, turns, 1, &request, NULL, NULL, NULL, &error), FVLM_STATUS_ARGUMENT, "of `stops` are larger");
    }
    // What is computed needs no image; a new conversation does.
    EXPECT(fvlm_forget_images(engine, NULL) == FVLM_STATUS_OK);
    EXPECT(fvlm_chat(engine, turns, 1, NULL, NULL, NULL, NULL, NULL) == FVLM_STATUS_OK);
    EXPECT(fvlm_reset(engine, NULL) == FVLM_STATUS_OK);
    REFUSED(fvlm_chat(engine, turns, 1, NULL, NULL, NULL, NULL, &error), FVLM_STATUS_PROMPT, "image that was not added");
    REFUSED(fvlm_ready(NULL, &error), FVLM_STATUS_ARGUMENT, "`engine` is null");

    conversations(bundle, arguments[2]);
    structured(bundle, arguments[2]);

    // The process ends with an engine that is being opened.
    EXPECT(fvlm_open(bundle, NULL, &other, NULL) == FVLM_STATUS_OK);

    fvlm_answer_free(&answer);
    fvlm_answer_free(&answer);
    fvlm_answer_free(NULL);
    fvlm_string_free(NULL);
    fvlm_cancel_free(NULL);
    fvlm_close(NULL);
    fvlm_close(engine);
    return broken;
}
