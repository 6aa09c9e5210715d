/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of the administrative commands share. */
#ifndef DCMEM_ADMIN_IMPL_H
#define DCMEM_ADMIN_IMPL_H

#include <jansson.h>

#include "daemon/admin.h"

/* Members of a command, with DCMEM_E_INVALID and a message; a missing one leaves the out-parameter. */
int admin_string(const json_t *object, const char *key, bool needed, const char **ret_text);
int admin_number(const json_t *object, const char *key, uint64_t missing, uint64_t *ret_number);
int admin_name(const json_t *object, const char *key, bool needed, const char **ret_name);
/* DCMEM_E_DENIED, unless the peer may administer. */
int admin_check_rights(const struct admin_request *request);
/* The text of a reply, which is freed. NULL: no memory. */
char *admin_dump(json_t *reply);

/* admin-tune.c */
int admin_tune(struct admin_request *request, const json_t *command);

#endif
