#include <mdprune.h>
#include <stdio.h>

int main(void) {
  char why[128] = "";
  mdp_model* model = NULL;
  const mdp_status status = mdp_model_open("/nowhere", &model, why, sizeof why);
  printf("%s: %s: %s\n", mdp_version(), mdp_status_text(status), why);
  return status == MDP_NOT_FOUND && model == NULL ? 0 : 1;
}
