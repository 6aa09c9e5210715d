/* SPDX-License-Identifier: Apache-2.0 */
/* The files of a container, written below a directory: what unpack and export share. */
#ifndef DCMEM_EXTRACT_H
#define DCMEM_EXTRACT_H

#include <stdbool.h>
#include <stdint.h>

#include "model/container.h"

/*
 * Restores every file of the container below `output`, which must not exist or be an empty directory,
 * and checks each against its hash; then finish(data, output), if there is one. After a failure the
 * directory is empty, or gone if it was made here. Stops with -EINTR on SIGINT, SIGTERM and SIGHUP.
 */
int extract(const struct container *container, const char *output, const char *label, bool quiet,
	    int (*finish)(void *data, const char *output), void *data, uint64_t *ret_bytes);

#endif
