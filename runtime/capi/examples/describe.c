// Describes an image, the words as they come.
//
//   cargo build --release -p capi
//   cc -std=c11 -Iruntime/capi/include runtime/capi/examples/describe.c -Ltarget/release -lfvlm -Wl,-rpath,target/release -o describe
//   ./describe fastvlm-bundle models/demo/scenes/scene_1.png

#include "fvlm.h"
#include <stdio.h>

static bool write_words(const char *text, size_t length, void *user) {
    (void)user;
    return fwrite(text, 1, length, stdout) == length && fflush(stdout) == 0;
}

static int complain(const char *what, char *error) {
    fprintf(stderr, "error: %s: %s\n", what, error);
    fvlm_string_free(error);
    return 2;
}

int main(int count, char **arguments) {
    if (count < 3) {
        fprintf(stderr, "usage: %s BUNDLE IMAGE [QUESTION]\n", arguments[0]);
        return 2;
    }
    if (fvlm_abi() != FVLM_ABI) {
        fprintf(stderr, "error: the header is of another version than the library\n");
        return 2;
    }
    char *error = NULL;
    fvlm_engine *engine = NULL;
    if (fvlm_open(arguments[1], NULL, &engine, &error) != FVLM_STATUS_OK)
        return complain(arguments[1], error);

    int code = 0;
    fvlm_image image;
    if (fvlm_add_image_file(engine, arguments[2], &image, &error) != FVLM_STATUS_OK) {
        code = complain(arguments[2], error);
    } else {
        const char *question = count > 3 ? arguments[3] : "Describe the image.";
        fvlm_message message = {.role = FVLM_ROLE_USER, .text = question, .images = &image, .image_count = 1};
        if (fvlm_chat(engine, &message, 1, NULL, write_words, NULL, NULL, &error) != FVLM_STATUS_OK)
            code = complain(question, error);
        else
            putchar('\n');
    }
    fvlm_close(engine);
    return code;
}
