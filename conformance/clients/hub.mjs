// Preloaded before a program with transformers.js: models come from the hub in $HUB, into the cache in $CACHE.
import { env } from '@huggingface/transformers';

env.remoteHost = process.env.HUB;
env.cacheDir = process.env.CACHE;
env.allowLocalModels = false;
