/* SPDX-License-Identifier: Apache-2.0 */
/* `dcmem bench tune`: serving, measured from outside. argv[0] is the word. */
#ifndef DCMEM_BENCH_TUNE_H
#define DCMEM_BENCH_TUNE_H

int bench_tune(int argc, char **argv);

#endif
