/* A process whose main function returns while another thread opens a model: ends BUNDLE MILLISECONDS */
#include "fvlm.h"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static void *opens(void *bundle) {
    fvlm_model *model = NULL;
    char *error = NULL;
    if (fvlm_model_open(bundle, NULL, &model, &error) != FVLM_STATUS_OK || fvlm_model_ready(model, &error) != FVLM_STATUS_OK)
        fprintf(stderr, "%s\n", error);
    fvlm_string_free(error);
    return NULL;
}

int main(int count, char **words) {
    pthread_t thread;
    if (count != 3 || pthread_create(&thread, NULL, opens, words[1]) != 0)
        return 2;
    long wait = atol(words[2]);
    struct timespec time = {wait / 1000, wait % 1000 * 1000000};
    nanosleep(&time, NULL);
    return 0;
}
